"""The page for people at `/`, and the page of the API at `/docs`; no outside resource is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import Environment
from markdown_it import MarkdownIt
from markupsafe import Markup

from heliostat.serve.contract import Endpoint


def front_page(endpoint: Endpoint, card: str, *, needs_key: bool) -> str:
    """What the model does, its card, and a form to try it.

    Args:
        endpoint: the job's side.
        card: Markdown of the newest version; raw HTML in it is shown as text.
        needs_key: whether the form asks for a key.
    """
    page = endpoint.page
    settings = {
        "path": f"{endpoint.prefix}{page.path}",
        "prefix": endpoint.prefix,
        "examples": [{"title": one.title, "body": one.body} for one in page.examples],
    }
    text: str = _template("front.html").render(
        title=endpoint.title,
        card=Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(card)),
        needs_key=needs_key,
        purpose=page.purpose,
        settings=Markup(_script_json(settings)),
        view=Markup(page.view),
        form=page.form,
        write=Markup(page.form.write if page.form else ""),
        read=Markup(page.form.read if page.form else ""),
    )
    return text


def api_page(schema: Mapping[str, Any]) -> str:
    """Every route with its request and responses, from the OpenAPI description."""
    routes = [
        {
            "method": method.upper(),
            "path": path,
            "summary": operation.get("description") or operation.get("summary", ""),
            "request": _fields(schema, _body_schema(operation)),
            "answers": [
                {"status": status, "text": answer.get("description", "")}
                for status, answer in operation.get("responses", {}).items()
            ],
        }
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    text: str = _template("api.html").render(title=schema["info"]["title"], routes=routes)
    return text


def _body_schema(operation: Mapping[str, Any]) -> Mapping[str, Any] | None:
    content = operation.get("requestBody", {}).get("content", {})
    found: Mapping[str, Any] | None = content.get("application/json", {}).get("schema")
    return found


def _fields(
    schema: Mapping[str, Any], part: Mapping[str, Any] | None, prefix: str = ""
) -> list[dict[str, str]]:
    """Name, type and meaning of every field of a request body, nested ones below their parent."""
    if part is None:
        return []
    part = _resolved(schema, part)
    required = set(part.get("required", []))
    rows: list[dict[str, str]] = []
    for name, field in part.get("properties", {}).items():
        items = field.get("items")
        need = "required" if name in required else f"default {json.dumps(field.get('default'))}"
        rows.append(
            {
                "name": f"{prefix}{name}",
                "type": _type(schema, field),
                "need": need,
                "text": field.get("description", ""),
            }
        )
        if items is not None and "$ref" in items:
            rows += _fields(schema, items, prefix=f"{prefix}{name}[].")
    return rows


def _type(schema: Mapping[str, Any], field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(schema, one) for one in field["anyOf"])
    if "enum" in field:
        return " | ".join(json.dumps(value) for value in field["enum"])
    if "const" in field:
        return json.dumps(field["const"])
    kind = str(field.get("type", "object"))
    if kind == "array":
        return f"list of {_type(schema, _resolved(schema, field.get('items', {})))}"
    low, high = field.get("minimum"), field.get("maximum")
    return f"{kind} {low} to {high}" if low is not None and high is not None else kind


def _resolved(schema: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in part:
        return part
    name = str(part["$ref"]).rsplit("/", 1)[-1]
    found: Mapping[str, Any] = schema["components"]["schemas"][name]
    return found


def _script_json(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value).replace("<", "\\u003c")


@lru_cache
def _environment() -> Environment:
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)


def _template(name: str) -> Any:
    text = (resources.files(__package__) / name).read_text(encoding="utf-8")
    return _environment().from_string(text)
