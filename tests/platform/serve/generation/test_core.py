"""The engine: every request gets what it would get alone, whatever goes on beside it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from tiny_lm import greedy, tiny_decoder, tiny_lm

from heliostat.serve.generation.byte_codec import ByteCodec
from heliostat.serve.generation.contract import Work
from heliostat.serve.generation.core import EngineCore
from heliostat.serve.generation.request import (
    Event,
    Finished,
    Produced,
    Request,
    Sampling,
    Scored,
    TokenLogprob,
)
from heliostat.serve.generation.sequence import GeneratedSequence
from models.paged_lm import PagedLM

GREEDY = Sampling(temperature=0.0)
CODEC = ByteCodec()


@dataclass
class Told:
    """What a client was told."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    scores: list[TokenLogprob] = field(default_factory=list)
    end: Finished | None = None

    def hear(self, event: Event) -> None:
        assert self.end is None, "nothing follows the end"
        if isinstance(event, Produced):
            self.tokens.append(event.token)
            self.text += event.text
            if event.logprob is not None:
                self.logprobs.append(event.logprob)
        elif isinstance(event, Scored):
            self.scores += event.logprobs
        else:
            self.text += event.text
            self.end = event

    @property
    def reason(self) -> str:
        assert self.end is not None
        return self.end.reason

    @property
    def reused(self) -> int:
        assert self.end is not None
        return self.end.reused_tokens


def prompt_of(length: int, seed: int) -> tuple[int, ...]:
    draw = random.Random(seed)
    return tuple(draw.randrange(256) for _ in range(length))


def run(
    core: EngineCore, requests: Sequence[Request], arrivals: Sequence[int] | None = None
) -> list[Told]:
    """Run requests that arrive before the given steps to their ends."""
    told: dict[GeneratedSequence, Told] = {}
    order: list[Told] = []
    pending = sorted(zip(arrivals or [0] * len(requests), range(len(requests)), strict=True))
    for _ in requests:
        order.append(Told())
    number = 0
    while pending or core.has_work:
        while pending and pending[0][0] <= number:
            _, index = pending.pop(0)
            told[core.add(requests[index])] = order[index]
        for sequence, event in core.step():
            told[sequence].hear(event)
        number += 1
        assert number < 5000
    assert core.scheduler.pool.held == 0
    return order


@pytest.mark.parametrize(("pages", "chunk"), [(64, 32), (64, 7), (9, 32)])
def test_each_request_gets_what_it_gets_without_a_cache(pages: int, chunk: int) -> None:
    """Requests of mixed lengths that come while others run; the small pool must preempt."""
    decoder = tiny_decoder()
    draw = random.Random(1)
    requests = [
        Request(
            prompt_of(draw.choice([1, 5, 17, 60, 100]), i),
            draw.choice([1, 9, 40]),
            GREEDY,
            logprobs=0,
        )
        for i in range(14)
    ]
    core = EngineCore(tiny_lm(pages=pages, sequences=5), CODEC, chunk=chunk)
    found = run(core, requests, [draw.randrange(40) for _ in requests])
    assert (core.scheduler.preemptions > 0) == (pages == 9)
    for request, told in zip(requests, found, strict=True):
        tokens, logprobs = greedy(decoder, list(request.prompt), request.max_tokens)
        assert told.tokens == tokens
        assert [one.logprob for one in told.logprobs] == pytest.approx(logprobs, abs=1e-5)
        assert told.reason == "length"


def test_a_seed_gives_one_completion_whoever_is_beside_it() -> None:
    wanted = Request(prompt_of(20, 1), 30, Sampling(1.0, top_p=0.9, seed=5))
    (alone,) = run(EngineCore(tiny_lm(), CODEC), [wanted])
    mates = [Request(prompt_of(9 * i + 1, i), 25, Sampling(seed=i)) for i in range(2, 7)]
    crowded = run(EngineCore(tiny_lm(pages=20), CODEC, chunk=11), [*mates, wanted])[-1]
    assert crowded.tokens == alone.tokens
    (other,) = run(EngineCore(tiny_lm(), CODEC), [replace(wanted, sampling=Sampling(seed=6))])
    assert other.tokens != alone.tokens


def test_those_who_decode_get_a_token_in_every_step_while_a_long_prompt_is_read() -> None:
    core = EngineCore(tiny_lm(), CODEC, chunk=16)
    first = core.add(Request(prompt_of(3, 0), 60, GREEDY))
    core.step()
    long = core.add(Request(prompt_of(300, 1), 2, GREEDY))
    steps = 0
    while long.generated == 0:
        events = core.step()
        assert any(one is first and isinstance(event, Produced) for one, event in events)
        steps += 1
    assert steps == math.ceil(300 / 16)


def test_a_step_never_has_more_prompt_tokens_than_a_chunk() -> None:
    class Watched(PagedLM):
        def forward(self, work: Sequence[Work]) -> torch.Tensor:  # type: ignore[override]
            most.append(sum(len(one.tokens) for one in work if len(one.tokens) > 1))
            return super().forward(work)

    most: list[int] = []
    model = Watched(tiny_decoder(), vocab_size=256, context=400, pages=64, sequences=8)
    run(EngineCore(model, CODEC, chunk=24), [Request(prompt_of(70, i), 3) for i in range(6)])
    assert max(most) == 24


@pytest.mark.parametrize("pages", [64, 9])
def test_scores_are_the_log_probabilities_of_the_prompt(pages: int) -> None:
    decoder = tiny_decoder()
    requests = [
        Request(prompt_of(length, length), new, GREEDY, logprobs=2, score_prompt=True)
        for length, new in ((50, 0), (1, 0), (2, 3), (70, 30))
    ]
    core = EngineCore(tiny_lm(pages=pages, sequences=4), CODEC, chunk=16)
    for request, told in zip(requests, run(core, requests), strict=True):
        with torch.inference_mode():
            logprobs = decoder(torch.tensor([request.prompt]))[0].log_softmax(1)
        expected = [
            float(row[token]) for row, token in zip(logprobs[:-1], request.prompt[1:], strict=True)
        ]
        assert [one.token for one in told.scores] == list(request.prompt[1:])
        assert [one.logprob for one in told.scores] == pytest.approx(expected, abs=1e-5)
        assert all(len(one.top) == 2 for one in told.scores)
        assert len(told.tokens) == request.max_tokens


def test_a_known_beginning_is_not_computed_again_and_changes_nothing() -> None:
    beginning = prompt_of(40, 0)
    first = Request(beginning + prompt_of(5, 1), 20, GREEDY)
    second = Request(beginning + prompt_of(30, 2), 20, GREEDY)
    fresh = [run(EngineCore(tiny_lm(), CODEC), [one])[0] for one in (first, second)]
    core = EngineCore(tiny_lm(), CODEC)
    one = run(core, [first])[0]
    again = run(core, [first])[0]
    two = run(core, [second])[0]
    assert [told.reused for told in (one, again, two)] == [0, 32, 32]
    assert one.tokens == again.tokens == fresh[0].tokens
    assert two.tokens == fresh[1].tokens
    # What was generated is known too: a conversation goes on from its own answers.
    longer = Request((*first.prompt, *one.tokens, 1, 2, 3), 4, GREEDY)
    (third,) = run(core, [longer])
    assert third.reused == 64
    off = EngineCore(tiny_lm(), CODEC, reuses_prefixes=False)
    assert [told.reused for told in run(off, [first, first])] == [0, 0]


def test_requests_that_begin_alike_at_the_same_time_share_pages() -> None:
    prompt = prompt_of(64, 3)
    core = EngineCore(tiny_lm(pages=12), CODEC, chunk=64)
    leader = core.add(Request(prompt, 30, GREEDY))
    core.step()
    followers = [core.add(Request((*prompt, i), 30, GREEDY)) for i in range(3)]
    core.step()
    assert all(one.pages[:4] == leader.pages[:4] for one in followers)
    assert core.scheduler.pool.held < 4 * 5


def test_cancelling_frees_pages_at_once_and_disturbs_nobody() -> None:
    decoder = tiny_decoder()
    core = EngineCore(tiny_lm(), CODEC, chunk=16)
    kept = Request(prompt_of(10, 0), 12, GREEDY)
    going = core.add(Request(prompt_of(100, 1), 50, GREEDY))
    staying = core.add(kept)
    core.step()
    core.step()
    assert core.scheduler.pool.held == 7 + 1
    event = core.cancel(going)
    assert isinstance(event, Finished)
    assert (event.reason, core.scheduler.pool.held) == ("cancelled", 1)
    waiting = core.add(Request(prompt_of(10, 2), 5, GREEDY))
    core.cancel(waiting)
    told = Told()
    while core.has_work:
        for sequence, happened in core.step():
            assert sequence is staying
            told.hear(happened)
    assert told.tokens == greedy(decoder, list(kept.prompt), 12)[0]


def test_whatever_comes_and_goes_every_page_comes_back() -> None:
    draw = random.Random(4)
    core = EngineCore(tiny_lm(pages=10, sequences=4, context=160), CODEC, chunk=20)
    open_ones: list[GeneratedSequence] = []
    for _ in range(400):
        if draw.random() < 0.3:
            same = prompt_of(48, draw.randrange(3))
            length = draw.randrange(1, 60)
            prompt = (same + prompt_of(60, draw.randrange(100)))[:length]
            open_ones.append(core.add(Request(prompt, draw.randrange(1, 90), Sampling(seed=1))))
        if open_ones and draw.random() < 0.05:
            core.cancel(open_ones.pop(draw.randrange(len(open_ones))))
        for sequence, event in core.step():
            if isinstance(event, Finished):
                assert event.reason == "length"
                open_ones.remove(sequence)
        held = {page for one in core.scheduler.running for page in one.pages}
        assert core.scheduler.pool.held == len(held)
    for one in open_ones:
        core.cancel(one)
    assert core.scheduler.pool.available == 10
    assert core.scheduler.preemptions > 0


def test_a_completion_ends_at_a_stop_token_or_before_a_stop_string() -> None:
    (free,) = run(EngineCore(tiny_lm(), CODEC), [Request(prompt_of(8, 1), 30, Sampling(seed=3))])
    text = free.text
    stop = text[10:13]
    place = text.find(stop)
    at_string = Request(prompt_of(8, 1), 30, Sampling(seed=3), stop=(stop,))
    at_token = Request(
        prompt_of(8, 1), 30, Sampling(seed=3), stop_tokens=frozenset({free.tokens[6]})
    )
    string, token = run(EngineCore(tiny_lm(), CODEC), [at_string, at_token])
    assert (string.text, string.reason) == (text[:place], "stop")
    first = free.tokens.index(free.tokens[6])
    assert (token.tokens, token.reason) == (free.tokens[: first + 1], "stop")


class Poisoned(PagedLM):
    """Gives NaN to a sequence that has this token, or raises for it."""

    raises = False

    def forward(self, work: Sequence[Work]) -> torch.Tensor:  # type: ignore[override]
        is_bad = [255 in one.tokens for one in work]
        if self.raises and any(is_bad):
            raise RuntimeError("out of memory")
        logits = super().forward(work)
        return logits.masked_fill(torch.tensor(is_bad)[:, None], math.nan)


@pytest.mark.parametrize("raises", [False, True])
def test_a_sequence_that_cannot_be_computed_fails_alone(raises: bool) -> None:
    model = Poisoned(tiny_decoder(), vocab_size=256, context=400, pages=20, sequences=8)
    model.raises = raises
    decoder = tiny_decoder()
    good = [tuple(token % 200 for token in prompt_of(30, i)) for i in range(3)]
    bad = (*good[0][:20], 255)
    core = EngineCore(model, CODEC)
    requests = [Request(one, 6, GREEDY) for one in (good[0], bad, good[1], good[2])]
    told = run(core, requests)
    assert [one.reason for one in told] == ["length", "error", "length", "length"]
    for prompt, one in zip(good, [told[0], *told[2:]], strict=True):
        expected = greedy(decoder, list(prompt), 6)[0]
        assert 255 in expected or one.tokens == expected


@pytest.mark.parametrize("raises", [False, True])
def test_a_sequence_that_fails_leaves_the_beginning_that_it_shared_to_the_other(
    raises: bool,
) -> None:
    model = Poisoned(tiny_decoder(), vocab_size=256, context=400, pages=20, sequences=8)
    model.raises = raises
    prompt = tuple(token % 200 for token in prompt_of(40, 3))
    bad = (*prompt[:36], 255)
    core = EngineCore(model, CODEC)
    requests = [Request(prompt, 12, GREEDY), Request(bad, 6, GREEDY), Request(prompt, 12, GREEDY)]
    told = run(core, requests, arrivals=[0, 4, 6])
    assert [one.reason for one in told] == ["length", "error", "length"]
    expected = greedy(tiny_decoder(), list(prompt), 12)[0]
    assert 255 not in expected
    assert told[0].tokens == expected
    assert told[2].tokens == expected
