"""The endpoint: a rotary model whose position scheme is a parameter of each request.

    POST /rerope/v1/score      how a text reads under a scheme, token by token
    POST /rerope/v1/compare    the same text under several schemes
    POST /rerope/v1/generate   a completion under a scheme, streamed or not
    GET  /rerope/v1/models     what can be asked for

Requests of one scheme generate together, in an engine of their own, and are scored together; the
schemes of a model share its weights and its thread.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Hashable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from heliostat.runs.bundle import Bundle
from heliostat.serve.contract import Example, Page
from heliostat.serve.errors import ApiError
from heliostat.serve.generation.byte_codec import ByteCodec
from heliostat.serve.generation.config import GenerationConfig
from heliostat.serve.generation.contract import Codec
from heliostat.serve.generation.engine import Engine, Generation
from heliostat.serve.generation.intake import Chosen, LanguageService
from heliostat.serve.generation.native_routes import describe, timing_of
from heliostat.serve.generation.openai_routes import openai_router
from heliostat.serve.generation.outcome import check, merged, outcomes
from heliostat.serve.generation.request import Finished, Produced, Request, Sampling
from heliostat.serve.generation.served import NamedModel, ServedLanguageModel
from heliostat.serve.generation.wire import LanguageRoute, stream
from heliostat.serve.service import Service
from jobs.pretrained import hf_bundle
from jobs.rerope.bundle import RotaryModel, open_checkpoint, open_model
from jobs.rerope.config import Config
from jobs.rerope.endpoint_types import (
    CompareAnswer,
    CompareRequest,
    GenerateAnswer,
    GenerateRequest,
    ResolvedScheme,
    SchemeScore,
    ScoreAnswer,
    ScoreRequest,
)
from jobs.rerope.reading import Reading, Scored, TokenScores, decide, scheme_score, score
from models.decoder import DecoderLM
from models.gau import GauLM
from models.paged_lm import PagedLM
from models.planned_lm import generating
from models.positions import PositionScheme
from models.precision import DTYPES, cast_weights

BACKEND = "x-attention-backend"
VIEW = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
SNIPPET = "def area(width, height):\n    return width * height\n\n\n" * 4
EXAMPLES = (
    Example(
        "One text under four schemes",
        {
            "text": SNIPPET,
            "schemes": [
                {"name": "rope"},
                {"name": "yarn", "k": 4},
                {"name": "self_extend", "window": 32, "group": 16, "log_n": "post"},
                {"name": "rerope", "window": 32, "log_n": "post"},
            ],
            "last": 48,
        },
    ),
)


def endpoint(config: Config) -> RotaryEndpoint:
    """The job's side of the endpoint."""
    return RotaryEndpoint(
        config.generation,
        config.serve.device,
        trained_length=config.long_text.trained_length,
    )


class RotaryEndpoint:
    """A rotary model over HTTP."""

    title = "Reading beyond the training length"
    prefix = "/rerope/v1"
    page = Page(path="/compare", examples=EXAMPLES, view=VIEW)

    def __init__(
        self,
        generation: GenerationConfig,
        device: str = "cpu",
        trained_length: int | None = None,
    ) -> None:
        self._generation, self._device = generation, device
        self._trained_length = trained_length

    def open(self, bundle: Bundle) -> ServedLanguageModel:
        """Load a version: a model of this job, or a rotary checkpoint of language_model."""
        codec: Codec = ByteCodec()
        if bundle.kind == hf_bundle.KIND:
            opened, codec = open_checkpoint(bundle, self._trained_length)
        else:
            opened = open_model(bundle)
        model = opened.model
        model.to(self._device)
        dtype = DTYPES[self._generation.precision]
        cast_weights(model, dtype)
        # A scheme that is made for it goes on beyond L.
        context = self._generation.context or opened.train_length

        def build(variant: Hashable) -> PagedLM:
            scheme = variant
            if not isinstance(scheme, PositionScheme):
                scheme = PositionScheme("rope", log_n=opened.log_n)
            planned = generating(model, scheme, train_length=opened.train_length, longest=context)
            return PagedLM(
                planned,
                vocab_size=model.config.vocab_size,
                context=context,
                pages=self._generation.pages(PagedLM.page_tokens),
                sequences=self._generation.sequences,
                dtype=dtype,
                device=self._device,
            )

        hybrid = model.config.hybrid if isinstance(model, DecoderLM) else None
        about = {
            "train_length": opened.train_length,
            "training_scheme": opened.training_scheme,
            "log_n": opened.log_n,
            "rotary_base": opened.shape.rotary_base,
            "context": context,
            "precision": self._generation.precision,
            "backbone": "gau" if isinstance(model, GauLM) else "transformer",
            "hybrid": asdict(hybrid) if hybrid is not None else None,
        }
        return ServedRotaryModel(
            NamedModel(opened.name, codec, build, about, extra=opened), self._generation
        )

    def router(self, service: Service) -> APIRouter:
        """The routes of its own."""
        return rerope_router(service)

    def common_router(self, service: Service) -> APIRouter:
        """The routes of OpenAI's clients, under plain rope."""
        return openai_router(service)


class ServedRotaryModel(ServedLanguageModel):
    """A version: beside its engines, texts to be scored come in batches."""

    def cost(self, item: Request | Scored) -> int:
        """Tokens that go through the model."""
        return len(item.tokens) if isinstance(item, Scored) else super().cost(item)

    def predict(self, items: Sequence[Any]) -> Sequence[Any]:
        """Scores; or the self test, which nobody shares a batch with."""
        if not isinstance(items[0], Scored):
            return super().predict(items)
        model = self.named.extra
        assert isinstance(model, RotaryModel)
        return score(model, items)


def rerope_router(service: Service) -> APIRouter:
    """The routes."""
    language = LanguageService(service)
    router = APIRouter(route_class=LanguageRoute)

    async def tokens_of(
        asked: ScoreRequest | CompareRequest | GenerateRequest, chosen: Chosen, new: int, least: int
    ) -> tuple[int, ...]:
        tokens = await language.tokens(chosen, asked.given, asked.field)
        language.room(chosen, tokens, new, asked.field)
        if len(tokens) < least:
            message = f"expected at least {least} tokens: the first one has nothing before it"
            raise ApiError(400, message, field=asked.field, code="invalid")
        return tokens

    async def scored(
        chosen: Chosen, tokens: tuple[int, ...], reading: Reading, last: int | None
    ) -> TokenScores:
        item = Scored(tokens, reading.plan, last)
        found: TokenScores = await service.submit(chosen.version, item)
        return found

    @router.post("/score", tags=["reading"])
    async def score_text(asked: ScoreRequest, response: Response) -> ScoreAnswer:
        """How a text reads under a scheme."""
        began = time.perf_counter()
        chosen = language.choose(asked.model)
        model = rotary(chosen)
        tokens = await tokens_of(asked, chosen, 0, least=2)
        reading = decide(
            model,
            asked.scheme,
            length=len(tokens) - 1,
            generates=False,
            force=asked.force,
            strict=asked.strict,
        )
        service.admit(chosen.version)
        found = await scored(chosen, tokens, reading, asked.last)
        response.headers[BACKEND] = reading.backend
        values: dict[str, Any] = {
            **scheme_score(model, reading, found).model_dump(),
            **named("score", chosen),
        }
        return ScoreAnswer(
            **values,
            n_tokens=len(tokens),
            token_logprobs=found.logprobs,
            elapsed_ms=1000 * (time.perf_counter() - began),
        )

    @router.post("/compare", tags=["reading"])
    async def compare(asked: CompareRequest, response: Response) -> CompareAnswer:
        """How a text reads under several schemes."""
        began = time.perf_counter()
        chosen = language.choose(asked.model)
        model = rotary(chosen)
        tokens = await tokens_of(asked, chosen, 0, least=2)
        readings = [
            decide(
                model,
                scheme,
                length=len(tokens) - 1,
                generates=False,
                force=asked.force,
                strict=asked.strict,
                field=f"schemes.{place}",
            )
            for place, scheme in enumerate(asked.schemes)
        ]
        service.admit(chosen.version)
        rows: list[SchemeScore] = []
        for reading in readings:
            found = await scored(chosen, tokens, reading, asked.last)
            rows.append(scheme_score(model, reading, found))
        response.headers[BACKEND] = ",".join(reading.backend for reading in readings)
        return CompareAnswer(
            **named("compare", chosen),
            n_tokens=len(tokens),
            rows=rows,
            elapsed_ms=1000 * (time.perf_counter() - began),
        )

    @router.post("/generate", tags=["generation"], response_model=GenerateAnswer)
    async def generate(asked: GenerateRequest, http: HttpRequest, response: Response) -> Any:
        """Continue a text under a scheme."""
        chosen = language.choose(asked.model)
        tokens = await tokens_of(asked, chosen, asked.max_new_tokens, least=1)
        reading = decide(
            rotary(chosen),
            asked.scheme,
            length=len(tokens) + asked.max_new_tokens,
            generates=True,
            force=asked.force,
            strict=asked.strict,
        )
        request = Request(
            prompt=tokens,
            max_tokens=asked.max_new_tokens,
            sampling=Sampling(asked.temperature, asked.top_p, 0, asked.seed),
            stop=tuple(asked.stop),
        )
        scheme = reading.plan.scheme
        generation = language.submit(chosen, request, scheme)
        answers = _Completion(chosen, reading, language.engine(chosen, scheme))
        if asked.stream:
            events = stream(answers.parts(generation), [generation])
            events.headers[BACKEND] = reading.backend
            return events
        (outcome,) = await outcomes([generation], http)
        response.headers[BACKEND] = reading.backend
        return answers.whole(outcome.text, outcome.tokens, outcome.finished)

    @router.get("/models", tags=["reading"])
    async def models() -> dict[str, Any]:
        """The versions that answer."""
        return {"models": [describe(one) for one in language.models]}

    return router


def rotary(chosen: Chosen) -> RotaryModel:
    """The opened bundle of a version."""
    model = chosen.model.named.extra
    assert isinstance(model, RotaryModel)
    return model


def named(kind: str, chosen: Chosen) -> dict[str, str]:
    """What every answer begins with."""
    return {
        "request_id": f"{kind}-{uuid.uuid4().hex}",
        "model": chosen.model.name,
        "version": chosen.version.name,
    }


class _Completion:
    """The answers to one request, all with one id."""

    def __init__(self, chosen: Chosen, reading: Reading, engine: Engine) -> None:
        self._named = named("gen", chosen)
        self._reading, self._engine = reading, engine

    def whole(self, text: str, tokens: list[int], end: Finished | None) -> GenerateAnswer:
        """A completion; `end` is None for a part that others follow."""
        reading = self._reading
        usage = timing = cache_bytes = None
        if end is not None:
            usage = {
                "prompt_tokens": end.prompt_tokens,
                "completion_tokens": end.completion_tokens,
            }
            timing = timing_of(end).model_dump()
            cached = end.prompt_tokens + max(0, end.completion_tokens - 1)
            engine = self._engine
            cache_bytes = cached * engine.bytes_per_token + engine.bytes_per_sequence
        return GenerateAnswer(
            **self._named,
            text=text,
            tokens=tokens,
            finish_reason=None if end is None else end.reason,  # type: ignore[arg-type]
            usage=usage,
            timing=timing,
            cache_bytes=cache_bytes,
            scheme=ResolvedScheme.of(reading.plan),
            extrapolating=reading.flags.is_extrapolating,
            window_not_recommended=reading.flags.window_not_recommended,
        )

    async def parts(self, generation: Generation) -> AsyncIterator[dict[str, Any]]:
        """An object for each token, and the end."""
        async for _, event in merged([generation]):
            check(event)
            if isinstance(event, Produced):
                yield self.whole(event.text, [event.token], None).model_dump()
            elif isinstance(event, Finished):
                yield self.whole(event.text, [], event).model_dump()
