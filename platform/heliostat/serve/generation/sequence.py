"""One request under way: its tokens, its pages, what it has told its client."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from heliostat.serve.generation.detokenise import Detokeniser
from heliostat.serve.generation.pages import next_link
from heliostat.serve.generation.request import (
    Finished,
    FinishReason,
    Request,
    Timing,
)
from heliostat.serve.generation.sampling import Sampler


@dataclass
class Times:
    """When things happened, in seconds of `time.perf_counter`; 0: not yet."""

    arrived: float = field(default_factory=time.perf_counter)
    admitted: float = 0.0
    prefilled: float = 0.0


class GeneratedSequence:
    """A request under way.

    `tokens` are the prompt and what was generated, of which the first `computed` are in the cache.
    There is always at least one that is not; when all but the newest are, the sequence decodes.
    After a preemption nothing is in the cache and everything is computed again, what was generated
    included: the tokens stay, so the client notices nothing.
    """

    def __init__(self, request: Request, token_bytes: Callable[[int], bytes]) -> None:
        self.request = request
        self.tokens = list(request.prompt)
        self.computed = 0
        self.pages: list[int] = []
        self.slot = -1
        self.is_resumed = False
        self.reused_tokens = 0
        self.times = Times()
        self.sampler = Sampler(request.sampling)
        self.text = Detokeniser(token_bytes, request.stop)
        self.scored = 1
        """Tokens of the prompt whose log-probability was told; the first has none."""
        self._links: list[bytes] = []

    @property
    def left(self) -> int:
        """Tokens that are not in the cache."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """New tokens."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def longest(self) -> int:
        """Tokens that it has at most in the end."""
        return len(self.request.prompt) + self.request.max_tokens

    @property
    def needs_every_row(self) -> bool:
        """Whether log-probabilities of the prompt are still to be told."""
        return self.request.score_prompt and self.scored < len(self.request.prompt)

    def links(self, page_tokens: int) -> list[bytes]:
        """The hash chain of its full blocks."""
        known = self._links
        for start in range(
            len(known) * page_tokens, len(self.tokens) - page_tokens + 1, page_tokens
        ):
            before = known[-1] if known else b""
            known.append(next_link(before, self.tokens[start : start + page_tokens]))
        return known

    def finished(self, reason: FinishReason, error: str | None = None) -> Finished:
        """The last event."""
        now, times = time.perf_counter(), self.times
        admitted = times.admitted or now
        prefilled = times.prefilled or now
        return Finished(
            reason=reason,
            text=self.text.finish(),
            prompt_tokens=len(self.request.prompt),
            completion_tokens=self.generated,
            reused_tokens=self.reused_tokens,
            timing=Timing(
                queue_s=admitted - times.arrived,
                prefill_s=max(0.0, prefilled - admitted),
                decode_s=now - prefilled,
            ),
            error=error,
        )
