"""Who owns which page of the cache, and which pages hold a beginning that can be used again.

A page is free, held by one or more sequences, or idle: held by nobody, but full and known by the
tokens up to its end, so that a later prompt with the same beginning need not compute them. Idle
pages are given away when no free one is left, the longest unused first and of one sequence the last
first, since a page is of no use without those before it.

A block is known by a hash chain: the hash of its tokens and of the block before it. Tokens are what
is hashed, so two prompts share pages exactly as far as their tokens are equal.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b


class OutOfPages(Exception):
    """More pages were asked for than can be given."""


def next_link(before: bytes, tokens: Sequence[int]) -> bytes:
    """The link of a full block of tokens; `before` is that of the block before it, or empty."""
    content = b"".join(token.to_bytes(4, "little") for token in tokens)
    return blake2b(before + content, digest_size=16).digest()


class PagePool:
    """The pages of one cache."""

    def __init__(self, pages: int) -> None:
        self._free = list(range(pages))
        self._holders = [0] * pages
        self._links: list[bytes | None] = [None] * pages
        self._known: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self.pages = pages

    @property
    def available(self) -> int:
        """Pages that can be taken now."""
        return len(self._free) + len(self._idle)

    @property
    def held(self) -> int:
        """Pages that some sequence holds."""
        return self.pages - self.available

    def take(self, count: int) -> list[int]:
        """Pages that nobody else holds, lowest numbers first; the caller holds them now.

        Raises:
            OutOfPages: fewer are available; none is taken.
        """
        if count > self.available:
            raise OutOfPages(f"{count} pages wanted, {self.available} available")
        taken = []
        for _ in range(count):
            if not self._free:
                page, _nothing = self._idle.popitem(last=False)
                self._forget(page)
                heapq.heappush(self._free, page)
            page = heapq.heappop(self._free)
            self._holders[page] = 1
            taken.append(page)
        return taken

    def reuse(self, chain: Sequence[bytes]) -> list[int]:
        """The pages of the longest known beginning of a chain; the caller holds them too."""
        found = []
        for link in chain:
            page = self._known.get(link)
            if page is None:
                break
            self._idle.pop(page, None)
            self._holders[page] += 1
            found.append(page)
        return found

    def seal(self, page: int, link: bytes) -> None:
        """Say that a page is full, and of what. Of two with the same content one is known."""
        if self._links[page] is None and link not in self._known:
            self._links[page] = link
            self._known[link] = page

    def release(self, pages: Sequence[int]) -> None:
        """Give up pages; those that others hold stay theirs."""
        for page in reversed(pages):
            assert self._holders[page] > 0
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if self._links[page] is None:
                heapq.heappush(self._free, page)
            else:
                self._idle[page] = None

    def sole(self, pages: Iterable[int]) -> list[int]:
        """Those of some held pages that nobody else holds."""
        return [page for page in pages if self._holders[page] == 1]

    def distrust(self, pages: Iterable[int]) -> None:
        """Let nobody else use what these pages hold; their holders keep them."""
        for page in pages:
            self._forget(page)
            if page in self._idle:
                del self._idle[page]
                heapq.heappush(self._free, page)

    def _forget(self, page: int) -> None:
        link = self._links[page]
        if link is not None:
            del self._known[link]
            self._links[page] = None
