"""Routes without the framework: which they are, and that nobody can tell."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from heliostat.serve.direct import DirectRoutes
from heliostat.serve.errors import ApiError, add_handlers
from heliostat.serve.gate import Gate, GateRules


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str = Field(max_length=5)


class Question(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=3)
    parts: list[Part] = Field(default=[], max_length=2)
    k: StrictInt = Field(5, ge=1, le=20)
    share: float = Field(0.5, strict=True, ge=0, le=1)


class Reply(BaseModel):
    k: int
    share: float
    texts: list[str]
    other_name: str | None = Field(None, serialization_alias="otherName")


router = APIRouter()


@router.post("/ask")
async def ask(request: Question) -> Reply:
    """The route that is looked at."""
    if request.name == "no":
        raise ApiError(422, "not this one", field="name")
    if request.name == "bug":
        raise RuntimeError("secret")
    texts = [part.text for part in request.parts]
    return Reply(k=request.k, share=request.share, texts=texts, other_name=request.name)


@router.post("/accepted", status_code=202)
async def accepted(request: Question) -> Reply:
    return await ask(request)


@router.post("/stream", response_model=Reply)
async def stream(request: Question) -> Reply | Response:
    return await ask(request)


@router.post("/query")
async def query(request: Question, page: int = 0) -> Reply:
    return await ask(request)


@router.post("/raw")
async def raw(request: Question, whole: Request) -> Reply:
    return await ask(request)


@router.post("/guarded")
async def guarded(request: Question, who: Annotated[str, Depends(lambda: "x")]) -> Reply:
    return await ask(request)


@router.post("/plain")
def plain(request: Question) -> Reply:
    raise NotImplementedError


@router.post("/of/{name}")
async def of(name: str, request: Question) -> Reply:
    return await ask(request)


@router.put("/ask")
async def put(request: Question) -> Reply:
    return await ask(request)


APP = FastAPI()
add_handlers(APP)
APP.include_router(router, prefix="/v1")
RULES = GateRules(
    keys=None,
    rate=None,
    body_bytes=10_000,
    request_s=5.0,
    refusal_s=lambda path: None,
    open_paths=frozenset(),
)
DIRECT = DirectRoutes(router, "/v1")
JSON = b"application/json"


def played(
    direct: DirectRoutes | None, body: bytes, kind: bytes = JSON, path: str = "/v1/ask"
) -> tuple[int, dict[bytes, bytes], Any]:
    """Status, headers and JSON of an answer."""
    incoming = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        if incoming:
            return incoming.pop()
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "path": path,
        "method": "POST",
        "query_string": b"",
        "headers": [(b"content-type", kind), (b"content-length", str(len(body)).encode())],
    }
    gate = Gate(APP, RULES, lambda *seen: None, frozenset(), direct)
    asyncio.run(gate(scope, receive, send))
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(content)


def same(body: bytes, kind: bytes = JSON) -> tuple[int, Any]:
    """Asked both ways; what the framework answers."""
    status, headers, found = played(DIRECT, body, kind)
    expected_status, expected_headers, expected = played(None, body, kind)
    assert (status, headers[b"content-type"]) == (
        expected_status,
        expected_headers[b"content-type"],
    )
    if status == 400:
        # The framework has another sentence for bytes that are no text.
        assert found["error"]["code"] == expected["error"]["code"] == "malformed"
    else:
        assert found == expected
        assert headers[b"content-length"] == expected_headers[b"content-length"]
    return status, found


def test_only_a_route_that_its_body_alone_decides_is_direct() -> None:
    paths = {f"/v1{route.path}" for route in router.routes}  # type: ignore[attr-defined]
    assert {path for path in paths if DIRECT.find("POST", path, JSON)} == {"/v1/ask"}
    assert DIRECT.find("PUT", "/v1/ask", JSON) is None
    assert DIRECT.find("POST", "/v1/ask", b"text/plain") is None
    assert DIRECT.find("POST", "/v1/ask", b"application/json; charset=utf-8") is not None


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"name": "a", "parts": [{"text": "hi"}], "k": 3, "share": 1}', 200),
        (b'{"name": "no"}', 422),
        (b'{"name": "bug"}', 500),
        (b'{"name": ""}', 422),
        (b'{"name": "a", "k": "3"}', 422),
        (b'{"name": "a", "k": 2.0}', 422),
        (b'{"name": "a", "share": NaN}', 422),
        (b'{"name": "a", "more": 1}', 422),
        (b'{"name": "a", "parts": [{"text": "hi"}, {"text": 3}]}', 422),
        (b"[]", 422),
        (b"null", 422),
        (b'"a"', 422),
        (b"{", 400),
        (b"\xff\xfe\xfa", 400),
        (b"[" * 9_000, 400),
        (b"", 422),
    ],
)
def test_nobody_can_tell(body: bytes, status: int) -> None:
    assert same(body)[0] == status
    same(body, b"application/json; charset=utf-8")
    same(body, b"text/plain")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 30) | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "parts", "text", "k", "share", "x"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(VALUES)
def test_nor_by_any_json(value: Any) -> None:
    same(json.dumps(value).encode())


@given(st.binary(max_size=40))
def test_nor_by_any_bytes(body: bytes) -> None:
    same(body)
