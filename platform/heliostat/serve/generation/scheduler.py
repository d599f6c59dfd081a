"""What is computed next: who is admitted, who decodes, whose prompt goes on, who must wait again.

Every step serves all sequences that decode, one token each, and beside them a chunk of prompts,
`chunk` tokens at most. So a long prompt delays the others by one chunk a step and no more, and the
weights are read once for both.

Admission is first come, first served: a sequence is admitted when there is a slot and there are
pages for all its tokens so far, besides one for each sequence that runs, which may soon need it.
A sequence that finds no page for its next token sends the one that was admitted last back to the
head of the queue, where its pages are given up and, later, computed again. The oldest is never sent
back, and no request is accepted that the pool could not hold alone, so everyone gets done.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from heliostat.serve.generation.pages import OutOfPages, PagePool
from heliostat.serve.generation.sequence import GeneratedSequence


@dataclass(frozen=True)
class Part:
    """A sequence's part of the next step."""

    sequence: GeneratedSequence
    new: int
    """Tokens of it that are computed."""

    @property
    def is_last(self) -> bool:
        """Whether nothing is left after it, so that a new token can be drawn."""
        return self.new == self.sequence.left


class Scheduler:
    """The sequences of one model and the pages that they hold."""

    def __init__(
        self,
        *,
        pages: int,
        page_tokens: int,
        sequences: int,
        chunk: int,
        reuses_prefixes: bool = True,
    ) -> None:
        """Make a scheduler.

        Args:
            pages: of the pool.
            page_tokens: tokens of a page.
            sequences: how many run at a time.
            chunk: tokens of prompts in a step.
            reuses_prefixes: whether pages of earlier sequences may be used again.
        """
        self._page_tokens, self._chunk, self._reuses = page_tokens, chunk, reuses_prefixes
        self._slots = list(range(sequences - 1, -1, -1))
        self.pool = PagePool(pages)
        self.waiting: deque[GeneratedSequence] = deque()
        self.running: list[GeneratedSequence] = []
        """In the order of admission."""
        self.preemptions = 0

    @property
    def capacity(self) -> int:
        """Tokens of the longest sequence that the pool can hold alone."""
        return self.pool.pages * self._page_tokens

    @property
    def is_short_of_pages(self) -> bool:
        """Whether a slot is free and the first that waits is not admitted for want of pages."""
        return bool(self.waiting and self._slots)

    def pages_for(self, tokens: int) -> int:
        """Pages that hold this many tokens."""
        return -(-tokens // self._page_tokens)

    def add(self, sequence: GeneratedSequence) -> None:
        """Let a sequence wait; it must be no longer than `capacity`."""
        self.waiting.append(sequence)

    def remove(self, sequence: GeneratedSequence, *, is_sound: bool = True) -> None:
        """Take a sequence out and free its pages at once.

        Args:
            sequence: waiting or running.
            is_sound: whether what its pages hold may be used again.
        """
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        if not is_sound:
            self.pool.distrust(sequence.pages)
        self._give_up(sequence)

    def plan(self) -> list[Part]:
        """The parts of the next step: those that decode, alike lengths together, then chunks."""
        self._admit()
        self._make_room()
        decoding = [one for one in self.running if one.left == 1]
        parts = [Part(one, 1) for one in sorted(decoding, key=lambda one: one.computed)]
        budget = self._chunk
        for one in self.running:
            if one.left > 1 and budget > 0:
                parts.append(Part(one, min(one.left, budget)))
                budget -= parts[-1].new
        return parts

    def done(self, parts: Sequence[Part]) -> None:
        """Note that the parts were computed: their full pages may be used again."""
        for part in parts:
            one = part.sequence
            first = one.computed // self._page_tokens
            one.computed += part.new
            one.is_resumed = False
            if self._reuses:
                links = one.links(self._page_tokens)
                for index in range(first, one.computed // self._page_tokens):
                    self.pool.seal(one.pages[index], links[index])

    def _admit(self) -> None:
        while self.waiting and self._slots:
            one = self.waiting[0]
            reused: list[int] = []
            if self._reuses and not one.needs_every_row:
                # The last token is computed in any case: its logits are wanted.
                most = (len(one.tokens) - 1) // self._page_tokens
                reused = self.pool.reuse(one.links(self._page_tokens)[:most])
            fresh = self.pages_for(len(one.tokens)) - len(reused)
            if self.pool.available < fresh + len(self.running):
                self.pool.release(reused)
                return
            self.waiting.popleft()
            one.pages = reused + self.pool.take(fresh)
            one.slot = self._slots.pop()
            one.computed = len(reused) * self._page_tokens
            one.is_resumed = bool(reused)
            if not one.times.admitted:
                one.times.admitted = time.perf_counter()
                one.reused_tokens = one.computed
            self.running.append(one)

    def _make_room(self) -> None:
        """A page for every sequence that needs one for its next token, the oldest first."""
        for one in list(self.running):
            while one in self.running and self.pages_for(len(one.tokens)) > len(one.pages):
                try:
                    one.pages += self.pool.take(1)
                except OutOfPages:
                    self._send_back(self.running[-1])

    def _send_back(self, sequence: GeneratedSequence) -> None:
        self.running.remove(sequence)
        self._give_up(sequence)
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def _give_up(self, sequence: GeneratedSequence) -> None:
        self.pool.release(sequence.pages)
        sequence.pages = []
        sequence.computed = 0
        self._slots.append(sequence.slot)
        sequence.slot = -1
