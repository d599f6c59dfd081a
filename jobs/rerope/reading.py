"""What the endpoint reads texts with: a model, the schemes that may be asked of it, and scores.

Texts that wait together are scored together: those of one scheme and about one length as the rows
of one batch, filled up at their ends, which no token before can see.

Refusals are those of `models.positions` and `models.position_checks`, told as answers of an API.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from heliostat.serve.errors import ApiError
from jobs.rerope.bundle import RotaryModel
from jobs.rerope.endpoint_types import ResolvedScheme, SchemeRequest, SchemeScore, scheme_values
from models.planned_lm import plan_for
from models.position_checks import (
    PlanFlags,
    flags,
    require_fixed_interval,
    require_inference,
    require_log_n,
)
from models.positions import PositionPlan, PositionScheme, has_branches

_FIELDS = {"interval": "k"}
_NAMES = ("name", "log_n", "window", "interval", "group", "chunk", "local", "beta")


@dataclass(frozen=True)
class Reading:
    """A scheme decided for a text."""

    plan: PositionPlan
    flags: PlanFlags

    @property
    def backend(self) -> str:
        """What computes its attention."""
        return "merge" if has_branches(self.plan) else "plain"


@dataclass(frozen=True)
class Scored:
    """A text to be scored."""

    tokens: tuple[int, ...]
    plan: PositionPlan
    last: int | None
    """Only so many tokens at its end; None: all."""


@dataclass(frozen=True)
class TokenScores:
    """What a text scored, target by target."""

    logprobs: list[float]
    hits: list[bool]

    @property
    def loss(self) -> float:
        """Nats a token."""
        return -sum(self.logprobs) / len(self.logprobs)

    @property
    def accuracy(self) -> float:
        """Share of targets that were the most probable token."""
        return sum(self.hits) / len(self.hits)


def decide(
    model: RotaryModel,
    asked: SchemeRequest,
    *,
    length: int,
    generates: bool,
    force: bool,
    strict: bool,
    field: str = "scheme",
) -> Reading:
    """The plan to read or write `length` tokens with.

    Raises:
        ApiError: 400 for a scheme that means nothing here, 409 for a log-n mode that contradicts
            the training of the model.
    """
    try:
        scheme = PositionScheme(**{"log_n": model.log_n, **scheme_values(asked)})
        require_inference(scheme)
        if generates:
            require_fixed_interval(scheme)
        plan = plan_for(model.shape, scheme, train_length=model.train_length, length=length)
    except ValueError as error:
        raise ApiError(400, str(error), field=_field(field, str(error)), code="invalid") from None
    if not force:
        try:
            require_log_n(scheme, model.log_n)
        except ValueError as error:
            raise ApiError(409, str(error), field=f"{field}.log_n") from None
    found = flags(plan, length)
    if strict and found.is_extrapolating:
        message = (
            f"relative positions up to {found.max_relative_position:g} would occur, and the model "
            f"was trained up to {model.train_length - 1}"
        )
        raise ApiError(400, message, field=field, code="extrapolating")
    return Reading(plan, found)


@torch.inference_mode()
def score(model: RotaryModel, texts: Sequence[Scored]) -> list[TokenScores]:
    """Log-probabilities of the last tokens of each text, each token given all before it."""
    together: defaultdict[tuple[PositionPlan, int], list[int]] = defaultdict(list)
    for place, text in enumerate(texts):
        # Where a scheme depends on the length, the interval of its plan says so already. Within a
        # power of two, filling up less than doubles what is computed.
        plan = replace(text.plan, length=0)
        together[plan, len(text.tokens).bit_length()].append(place)
    found: dict[int, TokenScores] = {}
    for places in together.values():
        longest = max((texts[place] for place in places), key=lambda text: len(text.tokens))
        ids = torch.zeros(len(places), len(longest.tokens), dtype=torch.int64)
        for row, place in enumerate(places):
            tokens = texts[place].tokens
            ids[row, : len(tokens)] = torch.tensor(tokens)
        inputs = ids[:, :-1].to(model.model.output_weight.device)
        hidden = model.model.decoder(inputs, position_plan=longest.plan)
        for row, place in enumerate(places):
            found[place] = _of_row(model, ids[row], hidden[row], texts[place])
    return [found[place] for place in range(len(texts))]


def _of_row(
    model: RotaryModel, ids: torch.Tensor, hidden: torch.Tensor, text: Scored
) -> TokenScores:
    end = len(text.tokens)
    start = 1 if text.last is None else max(1, end - text.last)
    targets = ids[start:end]
    rows = hidden[start - 1 : end - 1]
    logits = torch.nn.functional.linear(rows, model.model.output_weight).float().cpu()
    logprobs = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    return TokenScores(logprobs.tolist(), (logits.argmax(dim=-1) == targets).tolist())


def scheme_score(model: RotaryModel, reading: Reading, scores: TokenScores) -> SchemeScore:
    """The row of a scheme."""
    return SchemeScore(
        scheme=ResolvedScheme.of(reading.plan),
        train_length=model.train_length,
        max_relative_position=reading.flags.max_relative_position,
        extrapolating=reading.flags.is_extrapolating,
        window_not_recommended=reading.flags.window_not_recommended,
        loss_nats=scores.loss,
        accuracy=scores.accuracy,
    )


def _field(field: str, message: str) -> str:
    """The path of the field that a message begins with."""
    first = message.split(" ", 1)[0]
    if first in _NAMES:
        return f"{field}.{_FIELDS.get(first, first)}"
    needed = message.rsplit(" needs ", 1)[-1].rstrip(".")
    if needed in _NAMES:
        return f"{field}.{_FIELDS.get(needed, needed)}"
    return f"{field}.k" if "fixed interval" in message else field
