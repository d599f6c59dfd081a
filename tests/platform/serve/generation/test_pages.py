"""The allocator: whatever is done, no page is lost and none is shared that should not be."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from heliostat.serve.generation.pages import OutOfPages, PagePool, next_link

PAGES, BLOCK = 9, 2
PROMPTS = st.lists(st.integers(0, 1), max_size=4 * BLOCK).map(tuple)


def chain_of(tokens: tuple[int, ...]) -> list[bytes]:
    links: list[bytes] = []
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        links.append(next_link(links[-1] if links else b"", tokens[start : start + BLOCK]))
    return links


@dataclass(eq=False)
class Holder:
    """A sequence as the pool sees it."""

    tokens: tuple[int, ...]
    pages: list[int]


class Pool(RuleBasedStateMachine):
    """Sequences come, reuse what is known, fill their pages and go, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES)
        self.holders: list[Holder] = []
        self.content: dict[int, tuple[int, ...]] = {}
        """All tokens up to the end of each page, for pages that were filled."""

    @rule(tokens=PROMPTS)
    def admit(self, tokens: tuple[int, ...]) -> None:
        chain = chain_of(tokens)
        reused = self.pool.reuse(chain)
        for index, page in enumerate(reused):
            # What is reused holds exactly the tokens of this prompt.
            assert self.content[page] == tokens[: (index + 1) * BLOCK]
        wanted = -(-len(tokens) // BLOCK) - len(reused)
        if wanted > self.pool.available:
            with pytest.raises(OutOfPages):
                self.pool.take(wanted)
            self.pool.release(reused)
            return
        fresh = self.pool.take(wanted)
        others = {page for holder in self.holders for page in holder.pages}
        assert not others & set(fresh)
        assert len(set(fresh)) == wanted
        pages = reused + fresh
        for index in range(len(reused), len(chain)):
            self.content[pages[index]] = tokens[: (index + 1) * BLOCK]
            self.pool.seal(pages[index], chain[index])
        self.holders.append(Holder(tokens, pages))

    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        if self.holders:
            holder = data.draw(st.sampled_from(self.holders))
            self.holders.remove(holder)
            self.pool.release(holder.pages)

    @rule(data=st.data())
    def distrust(self, data: st.DataObject) -> None:
        if self.holders:
            holder = data.draw(st.sampled_from(self.holders))
            self.pool.distrust(holder.pages)
            again = self.pool.reuse(chain_of(holder.tokens))
            assert not set(again) & set(holder.pages)
            self.pool.release(again)

    @invariant()
    def every_page_is_somewhere(self) -> None:
        held = {page for holder in self.holders for page in holder.pages}
        assert self.pool.held == len(held)
        assert self.pool.available == PAGES - len(held)
        for holder in self.holders:
            for index, page in enumerate(holder.pages[: len(holder.tokens) // BLOCK]):
                # Nobody overwrote it: a page that is held is given to no one else.
                assert self.content[page] == holder.tokens[: (index + 1) * BLOCK]

    def teardown(self) -> None:
        for holder in self.holders:
            self.pool.release(holder.pages)
        assert self.pool.available == PAGES
        assert sorted(self.pool.take(PAGES)) == list(range(PAGES))


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_the_longest_unused_beginning_goes_first_and_its_end_before_its_start() -> None:
    pool = PagePool(4)
    old, new = chain_of((0, 0, 0, 1)), chain_of((1, 1, 1, 0))
    for chain in (old, new):
        pages = pool.take(2)
        for page, link in zip(pages, chain, strict=True):
            pool.seal(page, link)
        pool.release(pages)
    pool.take(1)
    assert len(pool.reuse(old)) == 1
    assert len(pool.reuse(new)) == 2


def test_equal_blocks_after_different_beginnings_have_different_links() -> None:
    assert chain_of((0, 0, 1, 1))[1] != chain_of((0, 1, 1, 1))[1]
