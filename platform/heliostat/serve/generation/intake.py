"""From a client's words to a request of an engine: which version, which tokens, does it fit.

Errors name the field as the client called it, in the one shape of all endpoints.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from heliostat.serve.errors import ApiError
from heliostat.serve.generation.engine import Engine, Generation
from heliostat.serve.generation.request import Request
from heliostat.serve.generation.served import ServedLanguageModel
from heliostat.serve.passage import note_version
from heliostat.serve.service import Service, Version

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Chosen:
    """A version that answers a request."""

    version: Version
    model: ServedLanguageModel


class LanguageService:
    """What the routes of a language model ask for."""

    def __init__(self, service: Service) -> None:
        self.service = service

    @property
    def models(self) -> list[Chosen]:
        """The versions that answer."""
        return [_chosen(version) for version in self.service.versions]

    def choose(self, name: str | None, sticky_key: str | None = None) -> Chosen:
        """The version that a request belongs to.

        Args:
            name: a model's name, by the shares of the lineup; or NAME:VERSION; None: any.
            sticky_key: requests with the same key get the same version.

        Raises:
            ApiError: 404 when nothing has this name.
        """
        by_share = _chosen(self.service.version_for(sticky_key))
        if name is None or name == by_share.model.name:
            return by_share
        for one in self.models:
            if name in (one.model.name, f"{one.model.name}:{one.version.name}"):
                note_version(one.version.name)
                return one
        known = ", ".join(dict.fromkeys(one.model.name for one in self.models))
        raise ApiError(404, f"there is no such model; there is {known}", field="model")

    def engine(self, chosen: Chosen, variant: Hashable = None) -> Engine:
        """The engine of a version.

        Raises:
            ApiError: 503 when there are too many already.
            ValueError: there is no such variant.
        """
        observer = self.service.telemetry.generation(chosen.version.name)
        return chosen.model.engine(self.service.thread, variant, observer)

    async def tokens(self, chosen: Chosen, prompt: Prompt, field: str) -> tuple[int, ...]:
        """The tokens of a prompt.

        Args:
            chosen: whose tokens.
            prompt: text or tokens.
            field: where the prompt stood.

        Raises:
            ApiError: 400 when it is empty or holds an unknown token.
        """
        if isinstance(prompt, str):
            found = await self.service.aside(partial(chosen.model.codec.encode, prompt))
        else:
            found = prompt
        if not found:
            raise ApiError(400, "the prompt is empty", field=field, code="invalid")
        size = chosen.model.limits.vocab_size
        for place, token in enumerate(found):
            if not 0 <= token < size:
                where = f"{field}.{place}"
                message = f"a token is a number from 0 to {size - 1}"
                raise ApiError(400, message, field=where, code="invalid")
        return tuple(found)

    async def conversation(
        self, chosen: Chosen, messages: Sequence[Mapping[str, str]]
    ) -> tuple[int, ...]:
        """The tokens of a conversation.

        Raises:
            ApiError: 400 when the model has no template, or its template refuses.
        """
        codec = chosen.model.codec
        if not codec.has_chat:
            message = "this model has no chat template; use completions"
            raise ApiError(400, message, field="messages", code="invalid")
        try:
            return tuple(await self.service.aside(partial(codec.chat, messages)))
        except ValueError as error:
            raise ApiError(400, str(error), field="messages", code="invalid") from None

    def room(self, chosen: Chosen, prompt: Sequence[int], wanted: int | None, field: str) -> int:
        """New tokens that a request may have: what it wants, or all that fit.

        Raises:
            ApiError: 413 when the prompt, or what it wants after it, does not fit.
        """
        longest = chosen.model.limits.longest
        left = longest - len(prompt)
        if left < (1 if wanted is None else wanted):
            asked = "" if wanted is None else f" and {wanted} new ones"
            message = f"{len(prompt)} tokens{asked} are more than the model's {longest}"
            raise ApiError(413, message, field=field)
        return left if wanted is None else wanted

    def submit(self, chosen: Chosen, request: Request, variant: Hashable = None) -> Generation:
        """Let a request wait for its turn.

        Raises:
            ApiError: 429 or 503 when too many wait.
        """
        return self.engine(chosen, variant).submit(request)


def _chosen(version: Version) -> Chosen:
    model = version.model
    assert isinstance(model, ServedLanguageModel)
    return Chosen(version, model)
