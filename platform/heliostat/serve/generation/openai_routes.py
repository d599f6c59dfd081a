"""The routes that OpenAI's client and those written for it expect.

    GET  /v1/models, /v1/models/NAME
    POST /v1/completions
    POST /v1/chat/completions

They stand beside a job's own routes and use the same engines, keys, limits and versions.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from heliostat.serve.errors import ApiError
from heliostat.serve.generation.engine import Generation
from heliostat.serve.generation.intake import Chosen, LanguageService
from heliostat.serve.generation.openai_format import (
    Head,
    Json,
    chat_logprobs,
    delta_choice,
    message_choice,
    text_choice,
    text_logprobs,
    usage_of,
)
from heliostat.serve.generation.openai_types import Common, OpenAiChat, OpenAiCompletion
from heliostat.serve.generation.outcome import Outcome, check, merged, outcomes
from heliostat.serve.generation.request import (
    Finished,
    Produced,
    Request,
    Sampling,
    Scored,
    TokenLogprob,
)
from heliostat.serve.generation.wire import LanguageRoute, stream
from heliostat.serve.service import Service

STARTED = int(time.time())


def openai_router(service: Service) -> APIRouter:
    """The routes."""
    language = LanguageService(service)
    router = APIRouter(prefix="/v1", route_class=LanguageRoute, tags=["OpenAI"])

    @router.get("/models")
    async def models() -> Json:
        """What can be asked for: each model, and each of its versions."""
        names = dict.fromkeys(
            name
            for one in language.models
            for name in (one.model.name, f"{one.model.name}:{one.version.name}")
        )
        return {"object": "list", "data": [_model(name) for name in names]}

    @router.get("/models/{name}")
    async def model(name: str) -> Json:
        """One of them."""
        language.choose(name)
        return _model(name)

    @router.post("/completions", response_model=None)
    async def completions(asked: OpenAiCompletion, http: HttpRequest) -> Response | Json:
        """Continue one prompt or several."""
        chosen = language.choose(asked.model, asked.user)
        requests = await _completion_requests(language, chosen, asked)
        generations = _submit(language, chosen, requests)
        prompts = len(asked.prompt)
        if asked.stream:
            return stream(_text_parts(chosen, asked, generations, prompts), generations)
        found = await outcomes(generations, http)
        choices = [
            _text_choice(chosen, asked, request, index, outcome)
            for index, (request, outcome) in enumerate(zip(requests, found, strict=True))
        ]
        usage = usage_of([one.finished for one in found], prompts)
        return Head(chosen, "text_completion").object(choices, usage)

    @router.post("/chat/completions", response_model=None)
    async def chat(asked: OpenAiChat, http: HttpRequest) -> Response | Json:
        """Answer a conversation."""
        chosen = language.choose(asked.model, asked.user)
        requests = await _chat_requests(language, chosen, asked)
        generations = _submit(language, chosen, requests)
        if asked.stream:
            return stream(_chat_parts(chosen, asked, generations), generations)
        found = await outcomes(generations, http)
        codec = chosen.model.codec
        choices = [
            message_choice(
                index,
                outcome.text,
                chat_logprobs(codec, outcome.logprobs) if asked.logprobs else None,
                outcome.finished.reason,
            )
            for index, outcome in enumerate(found)
        ]
        usage = usage_of([one.finished for one in found], 1)
        return Head(chosen, "chat.completion").object(choices, usage)

    return router


def _model(name: str) -> Json:
    return {"id": name, "object": "model", "created": STARTED, "owned_by": "heliostat"}


async def _completion_requests(
    language: LanguageService, chosen: Chosen, asked: OpenAiCompletion
) -> list[Request]:
    found = []
    for place, given in enumerate(asked.prompt):
        where = "prompt" if len(asked.prompt) == 1 else f"prompt.{place}"
        prompt = await language.tokens(chosen, given, where)
        room = language.room(chosen, prompt, asked.max_tokens, "max_tokens")
        scores = asked.echo and asked.logprobs is not None
        if room == 0 and not scores:
            message = "without new tokens there is nothing to tell but echo with logprobs"
            raise ApiError(400, message, field="max_tokens", code="invalid")
        for number in range(asked.n):
            found.append(
                Request(
                    prompt=prompt,
                    max_tokens=room,
                    sampling=_sampling(asked, number),
                    stop=tuple(asked.stop),
                    stop_tokens=chosen.model.codec.stop_tokens,
                    logprobs=asked.logprobs,
                    score_prompt=scores,
                )
            )
    return found


async def _chat_requests(
    language: LanguageService, chosen: Chosen, asked: OpenAiChat
) -> list[Request]:
    # A developer's words are what models before that role was invented know as the system's.
    messages = [
        {"role": one.role.replace("developer", "system"), "content": one.text}
        for one in asked.messages
    ]
    prompt = await language.conversation(chosen, messages)
    wanted = asked.max_completion_tokens or asked.max_tokens
    room = language.room(chosen, prompt, wanted, "messages")
    return [
        Request(
            prompt=prompt,
            max_tokens=room,
            sampling=_sampling(asked, number),
            stop=tuple(asked.stop),
            stop_tokens=chosen.model.codec.stop_tokens,
            logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        )
        for number in range(asked.n)
    ]


def _sampling(asked: Common, number: int) -> Sampling:
    """Of a prompt's choices each has a seed of its own."""
    seed = None if asked.seed is None else asked.seed + number
    return Sampling(asked.temperature, asked.top_p, asked.top_k, seed)


def _submit(
    language: LanguageService, chosen: Chosen, requests: Sequence[Request]
) -> list[Generation]:
    """All of them, or none.

    Raises:
        ApiError: 413 when they are more than may ever wait, 429 or 503 when too many wait now.
    """
    most = chosen.model.queue
    if len(requests) > most:
        message = f"{len(requests)} completions are asked for at once; at most {most} may be"
        raise ApiError(413, message, field="prompt")
    found: list[Generation] = []
    try:
        for request in requests:
            found.append(language.submit(chosen, request))
    except ApiError:
        for generation in found:
            generation.cancel()
        raise
    return found


def _text_choice(
    chosen: Chosen, asked: OpenAiCompletion, request: Request, index: int, outcome: Outcome
) -> Json:
    codec = chosen.model.codec
    before = b"".join(codec.token_bytes(one) for one in request.prompt) if asked.echo else b""
    text = before.decode("utf-8", "replace") + outcome.text
    logprobs = None
    if asked.logprobs is not None:
        entries: list[TokenLogprob | int] = [*outcome.logprobs]
        if asked.echo:
            entries = [request.prompt[0], *outcome.scores, *entries]
        logprobs = text_logprobs(codec, entries, asked.logprobs, 0)
    return text_choice(index, text, logprobs, outcome.finished.reason)


async def _text_parts(
    chosen: Chosen, asked: OpenAiCompletion, generations: Sequence[Generation], prompts: int
) -> AsyncIterator[Json]:
    head = Head(chosen, "text_completion")
    codec, top = chosen.model.codec, asked.logprobs
    ends: dict[int, Finished] = {}
    lengths = [0] * len(generations)
    # The prompt, and its log-probabilities, come before the first new token.
    echoed = {index for index in range(len(generations)) if asked.echo}
    scored: list[list[TokenLogprob | int]] = [[one.request.prompt[0]] for one in generations]
    async for index, event in merged(generations):
        check(event)
        if isinstance(event, Scored):
            scored[index] += event.logprobs
            continue
        if index in echoed:
            echoed.remove(index)
            prompt = generations[index].request.prompt
            content = b"".join(codec.token_bytes(one) for one in prompt)
            logprobs = None if top is None else text_logprobs(codec, scored[index], top, 0)
            text = content.decode("utf-8", "replace")
            lengths[index] += len(text)
            yield head.object([text_choice(index, text, logprobs, None)], None)
        logprobs, reason = None, None
        if isinstance(event, Produced) and event.logprob is not None and top is not None:
            logprobs = text_logprobs(codec, [event.logprob], top, lengths[index])
        if isinstance(event, Finished):
            ends[index], reason = event, event.reason
        lengths[index] += len(event.text)
        if event.text or logprobs or reason:
            yield head.object([text_choice(index, event.text, logprobs, reason)], None)
    if asked.stream_options is not None and asked.stream_options.include_usage:
        yield head.object([], usage_of([ends[one] for one in sorted(ends)], prompts))


async def _chat_parts(
    chosen: Chosen, asked: OpenAiChat, generations: Sequence[Generation]
) -> AsyncIterator[Json]:
    head = Head(chosen, "chat.completion.chunk")
    ends: dict[int, Finished] = {}
    for index in range(len(generations)):
        delta = {"role": "assistant", "content": ""}
        yield head.object([delta_choice(index, delta, None, None)], None)
    async for index, event in merged(generations):
        check(event)
        if isinstance(event, Scored):
            continue
        logprobs, reason = None, None
        if isinstance(event, Produced) and event.logprob is not None:
            logprobs = chat_logprobs(chosen.model.codec, [event.logprob])
        if isinstance(event, Finished):
            ends[index], reason = event, event.reason
        if event.text or logprobs:
            delta = {"content": event.text}
            yield head.object([delta_choice(index, delta, logprobs, None)], None)
        if reason:
            yield head.object([delta_choice(index, {}, None, reason)], None)
    if asked.stream_options is not None and asked.stream_options.include_usage:
        yield head.object([], usage_of([ends[one] for one in sorted(ends)], 1))
