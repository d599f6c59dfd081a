"""A language model's own routes: completions with everything there is to know, and scores.

    POST completions     a completion, streamed or not
    POST score           the log-probability of every token of a text
    GET  models          what can be asked for

A job mounts them below its prefix and may add its own to the same router.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi import Request as HttpRequest

from heliostat.serve.generation.engine import Engine, Generation
from heliostat.serve.generation.intake import Chosen, LanguageService
from heliostat.serve.generation.native_types import (
    CacheUse,
    CompletionAnswer,
    CompletionChoice,
    CompletionRequest,
    ScoreAnswer,
    ScoreRequest,
    TimingMs,
    TokenScore,
    Usage,
)
from heliostat.serve.generation.outcome import check, merged, outcomes
from heliostat.serve.generation.request import (
    Finished,
    Produced,
    Request,
    Sampling,
    TokenLogprob,
)
from heliostat.serve.generation.wire import LanguageRoute, stream
from heliostat.serve.service import Service

Sticky = Annotated[
    str | None,
    Header(alias="x-session", description="Requests of one session get one version of the model."),
]


def native_router(service: Service) -> APIRouter:
    """The routes."""
    language = LanguageService(service)
    router = APIRouter(route_class=LanguageRoute)

    @router.post("/completions", tags=["generation"], response_model=CompletionAnswer)
    async def completions(
        asked: CompletionRequest, http: HttpRequest, session: Sticky = None
    ) -> Any:
        """Continue a prompt."""
        chosen = language.choose(asked.model, session)
        prompt = await language.tokens(chosen, asked.prompt, "prompt")
        language.room(chosen, prompt, asked.max_tokens, "max_tokens")
        request = Request(
            prompt=prompt,
            max_tokens=asked.max_tokens,
            sampling=Sampling(asked.temperature, asked.top_p, asked.top_k, asked.seed),
            stop=tuple(asked.stop),
            stop_tokens=chosen.model.codec.stop_tokens,
            logprobs=asked.logprobs or None,
        )
        generation = language.submit(chosen, request)
        answer = _Answers(chosen, language.engine(chosen))
        if asked.stream:
            return stream(answer.parts(generation), [generation])
        (outcome,) = await outcomes([generation], http)
        return answer.whole(outcome.text, outcome.tokens, outcome.logprobs, outcome.finished)

    @router.post("/score", tags=["generation"])
    async def score(asked: ScoreRequest, http: HttpRequest, session: Sticky = None) -> ScoreAnswer:
        """How probable a text is."""
        chosen = language.choose(asked.model, session)
        field = "tokens" if asked.text is None else "text"
        given = asked.tokens if asked.text is None else asked.text
        prompt = await language.tokens(chosen, given or [], field)
        language.room(chosen, prompt, 0, field)
        request = Request(prompt=prompt, max_tokens=0, score_prompt=True)
        (outcome,) = await outcomes([language.submit(chosen, request)], http)
        found = [one.logprob for one in outcome.scores]
        return ScoreAnswer(
            model=chosen.model.name,
            version=chosen.version.name,
            loss_nats=-sum(found) / len(found) if found else None,
            token_logprobs=found,
            n_tokens=len(prompt),
        )

    @router.get("/models", tags=["generation"])
    async def models() -> dict[str, Any]:
        """The versions that answer, and how busy their engines are."""
        return {"models": [describe(one) for one in language.models]}

    return router


def describe(chosen: Chosen) -> dict[str, Any]:
    """What there is to know of a version; JSON. The engine is that of the first variant, if any."""
    engine = chosen.model.engines.get(None)
    limits = chosen.model.limits
    return {
        **chosen.model.about(),
        "version": chosen.version.name,
        "longest": limits.longest,
        "vocab_size": limits.vocab_size,
        "bytes_per_token": limits.bytes_per_token,
        "has_chat": chosen.model.codec.has_chat,
        "engine": None if engine is None else engine.status(),
    }


class _Answers:
    """The answers to one request, all with one id."""

    def __init__(self, chosen: Chosen, engine: Engine) -> None:
        self._chosen, self._engine = chosen, engine
        self._id = f"cmpl-{uuid.uuid4().hex}"

    def whole(
        self,
        text: str,
        tokens: Sequence[int],
        logprobs: Sequence[TokenLogprob],
        end: Finished | None,
    ) -> CompletionAnswer:
        """A completion; `end` is None for a part that others follow."""
        assert end is None or end.reason != "error"
        return CompletionAnswer(
            id=self._id,
            model=self._chosen.model.name,
            version=self._chosen.version.name,
            choices=[
                CompletionChoice(
                    text=text,
                    tokens=list(tokens),
                    finish_reason=None if end is None else end.reason,  # type: ignore[arg-type]
                    logprobs=[token_score(one) for one in logprobs] or None,
                )
            ],
            usage=None
            if end is None
            else Usage(prompt_tokens=end.prompt_tokens, completion_tokens=end.completion_tokens),
            timing=None if end is None else timing_of(end),
            cache=None
            if end is None
            else CacheUse(
                bytes_per_token=self._engine.bytes_per_token,
                tokens=end.prompt_tokens + max(0, end.completion_tokens - 1),
                reused_tokens=end.reused_tokens,
            ),
        )

    async def parts(self, generation: Generation) -> AsyncIterator[dict[str, Any]]:
        """An object for each token, and the end."""
        async for _, event in merged([generation]):
            check(event)
            if isinstance(event, Produced):
                logprobs = [] if event.logprob is None else [event.logprob]
                yield self.whole(event.text, [event.token], logprobs, None).model_dump()
            elif isinstance(event, Finished):
                yield self.whole(event.text, [], [], event).model_dump()


def token_score(one: TokenLogprob) -> TokenScore:
    """A token's log-probability on the wire."""
    return TokenScore(token=one.token, logprob=one.logprob, top=list(one.top))


def timing_of(end: Finished) -> TimingMs:
    """Where the time went."""
    steps = max(1, end.completion_tokens - 1)
    return TimingMs(
        queue_ms=1000 * end.timing.queue_s,
        prefill_ms=1000 * end.timing.prefill_s,
        decode_ms_per_token=1000 * end.timing.decode_s / steps,
    )
