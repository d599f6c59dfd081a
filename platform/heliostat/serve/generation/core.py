"""The engine without clients: requests in, one step after another, events out.

Plain and blocking, for one thread: what `Engine` runs for a server, and what a benchmark or a
notebook may run itself.

    core = EngineCore(model, codec)
    sequence = core.add(Request(tuple(codec.encode("Once")), max_tokens=20))
    while core.has_work:
        for sequence, event in core.step():
            ...

A step that raises is computed again sequence by sequence, so that only the one that cannot be
computed fails. The same goes for logits that are not finite.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from heliostat.serve.generation.contract import Codec, LanguageModel, Work
from heliostat.serve.generation.request import Event, Produced, Request, Scored
from heliostat.serve.generation.sampling import is_finite, logprob_of
from heliostat.serve.generation.scheduler import Part, Scheduler
from heliostat.serve.generation.sequence import GeneratedSequence

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

CHUNK = 128
Events = list[tuple[GeneratedSequence, Event]]


class EngineCore:
    """One model, its pages, and the requests that it works on."""

    def __init__(
        self,
        model: LanguageModel,
        codec: Codec,
        *,
        chunk: int = CHUNK,
        reuses_prefixes: bool = True,
    ) -> None:
        """Make an engine for a model.

        Args:
            model: computes.
            codec: its text.
            chunk: tokens of prompts that are computed in a step beside those that decode.
            reuses_prefixes: whether the cache of a prompt's beginning may be used again.
        """
        self._model, self._codec = model, codec
        self.scheduler = Scheduler(
            pages=model.pages,
            page_tokens=model.page_tokens,
            sequences=model.sequences,
            chunk=chunk,
            reuses_prefixes=reuses_prefixes,
        )

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.scheduler.waiting or self.scheduler.running)

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._model.vocab_size

    @property
    def bytes_per_token(self) -> int:
        """What a token takes of the cache."""
        return self._model.bytes_per_token

    @property
    def bytes_per_sequence(self) -> int:
        """What a sequence takes besides."""
        return self._model.bytes_per_sequence

    @property
    def longest(self) -> int:
        """Tokens, prompt and completion together, that a request may have."""
        return min(self._model.context, self.scheduler.capacity)

    def add(self, request: Request) -> GeneratedSequence:
        """Accept a request; `longest` and the vocabulary were looked at before."""
        assert request.prompt
        assert len(request.prompt) + request.max_tokens <= self.longest
        sequence = GeneratedSequence(request, self._codec.token_bytes)
        self.scheduler.add(sequence)
        return sequence

    def has(self, sequence: GeneratedSequence) -> bool:
        """Whether a request is waiting or running."""
        return sequence in self.scheduler.running or sequence in self.scheduler.waiting

    def cancel(self, sequence: GeneratedSequence) -> Event:
        """Forget a request and free its pages; must not be called during a step."""
        self.scheduler.remove(sequence)
        return sequence.finished("cancelled")

    def step(self) -> Events:
        """Compute the next step; blocking."""
        parts = self.scheduler.plan()
        if not parts:
            return []
        try:
            logits = self._model.forward([_work(part) for part in parts])
        except Exception:
            if len(parts) > 1:
                logger.exception("a step failed; its %d sequences go on one by one", len(parts))
            return [event for part in parts for event in self._alone(part)]
        return self._conclude(parts, logits)

    def _alone(self, part: Part) -> Events:
        # The step that failed may have left new tokens where the model keeps the last ones.
        part.sequence.is_resumed = part.sequence.computed > 0
        try:
            logits = self._model.forward([_work(part)])
        except Exception:
            logger.exception("a sequence of %d tokens cannot be computed", part.sequence.computed)
            return [self._fail(part.sequence, "the model could not compute it")]
        return self._conclude([part], logits)

    def _conclude(self, parts: Sequence[Part], logits: torch.Tensor) -> Events:
        self.scheduler.done(parts)
        events: Events = []
        row = 0
        for part in parts:
            rows = part.new if part.sequence.needs_every_row else 1
            own = logits[row : row + rows]
            row += rows
            if not is_finite(own[-1]):
                events.append(
                    self._fail(part.sequence, "the model gave numbers that are not finite")
                )
                continue
            events += [(part.sequence, event) for event in self._advance(part, own)]
        return events

    def _advance(self, part: Part, own: torch.Tensor) -> Iterator[Event]:
        sequence, request = part.sequence, part.sequence.request
        if sequence.needs_every_row:
            yield self._score(sequence, own)
        if sequence.left > 0:
            return
        if not sequence.times.prefilled:
            sequence.times.prefilled = time.perf_counter()
        if request.max_tokens == 0:
            self.scheduler.remove(sequence)
            yield sequence.finished("length")
            return
        token = sequence.sampler.draw(own[-1])
        sequence.tokens.append(token)
        logprob = None
        if request.logprobs is not None:
            logprob = logprob_of(own[-1], token, request.logprobs)
        is_end = token in request.stop_tokens
        yield Produced(token, "" if is_end else sequence.text.add(token), logprob)
        if is_end or sequence.text.is_stopped or sequence.generated == request.max_tokens:
            self.scheduler.remove(sequence)
            reached = is_end or sequence.text.is_stopped
            yield sequence.finished("stop" if reached else "length")

    def _score(self, sequence: GeneratedSequence, own: torch.Tensor) -> Scored:
        """Log-probabilities of what the rows predict, as far as it is the prompt's."""
        prompt, top = sequence.request.prompt, sequence.request.logprobs or 0
        first = sequence.computed - len(own) + 1
        targets = prompt[max(first, sequence.scored) : sequence.computed + 1]
        skipped = max(first, sequence.scored) - first
        told = tuple(
            logprob_of(row, token, top) for row, token in zip(own[skipped:], targets, strict=False)
        )
        sequence.scored += len(told)
        return Scored(told)

    def _fail(self, sequence: GeneratedSequence, why: str) -> tuple[GeneratedSequence, Event]:
        # What others hold too was whole before this sequence came, and they read it.
        pages = self.scheduler.pool.sole(sequence.pages)
        self.scheduler.remove(sequence, is_sound=False)
        self._model.clear(pages)
        return sequence, sequence.finished("error", why)


def _work(part: Part) -> Work:
    sequence = part.sequence
    return Work(
        tokens=sequence.tokens[sequence.computed : sequence.computed + part.new],
        past=sequence.computed,
        pages=sequence.pages,
        slot=sequence.slot,
        is_resumed=sequence.is_resumed,
        every_row=sequence.needs_every_row,
    )
