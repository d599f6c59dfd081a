"""Answers in OpenAI's format: plain dictionaries, made in one place."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from heliostat.serve.generation.contract import Codec
from heliostat.serve.generation.intake import Chosen
from heliostat.serve.generation.request import Finished, TokenLogprob

Json = dict[str, Any]


@dataclass(frozen=True)
class Head:
    """What every object of one answer begins with."""

    chosen: Chosen
    kind: str
    """`text_completion`, `chat.completion` or `chat.completion.chunk`."""
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def object(self, choices: Sequence[Json], usage: Json | None) -> Json:
        """An answer or a part of one."""
        return {
            "id": self.id,
            "object": self.kind,
            "created": self.created,
            "model": self.chosen.model.name,
            "system_fingerprint": self.chosen.version.name,
            "choices": list(choices),
            "usage": usage,
        }


def text_choice(index: int, text: str, logprobs: Json | None, reason: str | None) -> Json:
    """A choice of a completion."""
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def message_choice(index: int, text: str, logprobs: Json | None, reason: str | None) -> Json:
    """A choice of a chat completion."""
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}


def delta_choice(index: int, delta: Json, logprobs: Json | None, reason: str | None) -> Json:
    """A choice of a part of a chat completion."""
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def usage_of(ends: Sequence[Finished], prompts: int) -> Json:
    """Tokens of all choices; a prompt counts once however many choices it has.

    Args:
        ends: of the choices, all choices of a prompt one after the other.
        prompts: how many prompts there are.
    """
    each = len(ends) // prompts
    prompt = sum(end.prompt_tokens for end in ends[::each])
    reused = sum(end.reused_tokens for end in ends[::each])
    completion = sum(end.completion_tokens for end in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": reused},
    }


def chat_logprobs(codec: Codec, found: Sequence[TokenLogprob]) -> Json:
    """Log-probabilities as chat completions tell them."""

    def one(token: int, logprob: float) -> Json:
        content = codec.token_bytes(token)
        return {"token": _name(content), "logprob": logprob, "bytes": list(content)}

    return {
        "content": [
            {
                **one(entry.token, entry.logprob),
                "top_logprobs": [one(token, logprob) for token, logprob in entry.top],
            }
            for entry in found
        ],
        "refusal": None,
    }


def text_logprobs(codec: Codec, found: Sequence[TokenLogprob | int], top: int, offset: int) -> Json:
    """Log-probabilities as completions tell them.

    Args:
        codec: of the tokens.
        found: log-probabilities; a token alone has none, as the first of a prompt.
        top: how many others are told of.
        offset: characters of the text before the first token.
    """
    names: list[str] = []
    offsets: list[int] = []
    logprobs: list[float | None] = []
    others: list[dict[str, float] | None] = []
    for entry in found:
        token = entry if isinstance(entry, int) else entry.token
        names.append(_name(codec.token_bytes(token)))
        offsets.append(offset)
        offset += len(codec.token_bytes(token).decode("utf-8", "ignore"))
        if isinstance(entry, int):
            logprobs.append(None)
            others.append(None)
        else:
            logprobs.append(entry.logprob)
            others.append({_name(codec.token_bytes(one)): value for one, value in entry.top})
    return {
        "tokens": names,
        "token_logprobs": logprobs,
        "top_logprobs": others if top else None,
        "text_offset": offsets,
    }


def _name(content: bytes) -> str:
    """A token as a string; one that is no whole text by its bytes, as OpenAI writes them."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
