"""The next token of one request, from its logits and its own random numbers.

Every request has a generator of its own, so neither the order of requests nor what is computed
beside it changes what it draws. The token is found by inverting the cumulative distribution with
one uniform number; cuts keep the most probable tokens: top_k first, then top_p of what is left.
"""

from __future__ import annotations

import math
import secrets
from typing import TYPE_CHECKING

import numpy as np

from heliostat.serve.generation.request import Sampling, TokenLogprob

if TYPE_CHECKING:
    import torch

CANDIDATES = 1024
"""Tokens that are sorted for top_p at first; more only where these have too little probability."""


class Sampler:
    """Draws the tokens of one request."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._random = np.random.Generator(np.random.Philox(key=seed % 2**64))

    def draw(self, logits: torch.Tensor) -> int:
        """A token."""
        sampling = self._sampling
        if sampling.temperature == 0:
            return int(logits.argmax())
        if sampling.top_k == 1:
            self._random.random()
            return int(logits.argmax())
        scaled = logits.double() / sampling.temperature
        point = self._random.random()
        if sampling.top_k == 0 and sampling.top_p == 1:
            return _invert(scaled.softmax(0), point)
        values, tokens = _most_probable(scaled, sampling)
        return int(tokens[_invert(values.softmax(0), point)])


def _most_probable(scaled: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and numbers of the tokens that the cuts leave, the most probable first."""
    import torch

    size = len(scaled)
    most = min(sampling.top_k or size, size)
    if sampling.top_p == 1:
        values, tokens = torch.topk(scaled, most)
        return values, tokens
    count = min(CANDIDATES, most)
    while True:
        values, tokens = torch.topk(scaled, count)
        whole = scaled if most == size else torch.topk(scaled, most).values
        reached = (values - whole.logsumexp(0)).exp().cumsum(0)
        enough = reached >= sampling.top_p
        if bool(enough[-1]):
            kept = int(enough.int().argmax()) + 1
            return values[:kept], tokens[:kept]
        if count == most:
            return values, tokens
        count = most


def _invert(probabilities: torch.Tensor, point: float) -> int:
    """Where the cumulative distribution passes `point`, 0 <= point < 1."""
    import torch

    cumulative = probabilities.cumsum(0)
    place = int(torch.searchsorted(cumulative, point * float(cumulative[-1]), right=True))
    return min(place, len(probabilities) - 1)


def logprob_of(logits: torch.Tensor, token: int, top: int) -> TokenLogprob:
    """The log-probability of a token, and the `top` most probable ones."""
    total = float(logits.logsumexp(0))
    best: tuple[tuple[int, float], ...] = ()
    if top:
        values, tokens = logits.topk(min(top, len(logits)))
        best = tuple(zip(tokens.tolist(), (values - total).tolist(), strict=True))
    return TokenLogprob(token, min(float(logits[token]) - total, 0.0), best)


def is_finite(logits: torch.Tensor) -> bool:
    """Whether there is a distribution at all; one token with all of it is one."""
    return math.isfinite(float(logits.max())) and not bool(logits.isnan().any())
