"""Reading on many ranks: the sequence of samples does not depend on how many there are."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.data.reader import (
    BatchPlan,
    StreamReader,
    batch_plan,
    evaluation_batches,
    step_positions,
)
from heliostat.data.stream import PackedStream, RowStream, Sample, Stream
from heliostat.errors import ConfigError, DataError
from heliostat.storage import Location


@dataclass(frozen=True)
class Counting:
    """A stream without files whose sample at a position names epoch and row."""

    epoch_size: int
    fingerprint: str = "counting"

    def samples(self, positions: Sequence[int]) -> list[Sample]:
        """The epoch and the row."""
        return [{"id": divmod(position, self.epoch_size)} for position in positions]


def ids(samples: Sequence[Sample]) -> list[object]:
    return [sample["id"] for sample in samples]


def always(plan: BatchPlan) -> Callable[[int], BatchPlan]:
    """Every step is cut the same way."""
    return lambda step: plan


def read(stream: Stream, plan: BatchPlan, steps: int, position: int) -> list[list[object]]:
    """The ids of each step over all ranks, in the global order."""
    readers = [
        StreamReader(
            stream,
            plan_at=always(plan),
            rank=rank,
            position=position,
            collate=ids,
        )
        for rank in range(plan.world_size)
    ]
    seen = []
    for _ in range(steps):
        shares = []
        for reader in readers:
            micro_batches = reader.next_step()
            assert len(micro_batches) == plan.accumulation
            assert {len(batch) for batch in micro_batches} == {plan.micro_batch}
            shares.append([found for batch in micro_batches for found in batch])
        seen.append([found for together in zip(*shares, strict=True) for found in together])
    for reader in readers:
        assert reader.state()["position"] == position + steps * plan.global_batch
        reader.close()
    return seen


@settings(deadline=None, max_examples=30)
@given(data=st.data(), epoch_size=st.integers(1, 50), global_batch=st.sampled_from([6, 12, 24]))
def test_any_cuts_and_world_sizes_give_the_uninterrupted_sequence(
    data, epoch_size, global_batch
) -> None:
    """Mid-epoch, at the last step of an epoch, with epochs smaller than a batch: all the same."""
    stream = Counting(epoch_size)
    expected = [
        [divmod(position, epoch_size) for position in range(step, step + global_batch)]
        for step in range(0, 8 * global_batch, global_batch)
    ]
    seen: list[list[object]] = []
    while len(seen) < 8:
        steps = data.draw(st.integers(1, 8 - len(seen)), label="steps until the crash")
        world_size = data.draw(st.sampled_from([1, 2, 3, 6]), label="world size")
        share = global_batch // world_size
        sizes = [size for size in range(1, share + 1) if share % size == 0]
        micro_batch = data.draw(st.sampled_from(sizes), label="micro batch")
        plan = batch_plan(global_batch, micro_batch, world_size)
        seen += read(stream, plan, steps, position=len(seen) * global_batch)
    assert seen == expected


def test_real_rows_are_each_seen_once_in_an_epoch_over_a_resize(write_documents, tmp_path) -> None:
    write_documents(Location.of(tmp_path), [[n] for n in range(2, 122)])
    stream = RowStream(Location.of(tmp_path), seed=9)
    whole = read(stream, batch_plan(12, 12, 1), steps=20, position=0)
    first = read(stream, batch_plan(12, 2, 3), steps=7, position=0)
    rest = read(stream, batch_plan(12, 3, 2), steps=13, position=7 * 12)
    assert first + rest == whole
    seen = [found for step in whole for found in step]
    assert sorted(seen[:120]) == sorted(seen[120:]) == sorted(f"d{n}" for n in range(120))


def test_work_that_was_lost_in_a_crash_is_read_again(write_documents, tmp_path) -> None:
    """A crash inside an accumulation window goes back to the last checkpoint's position."""
    write_documents(Location.of(tmp_path), [[n] * 5 for n in range(2, 122)])
    stream = PackedStream(Location.of(tmp_path), 8, seed=9, end_of_text=0, pad=1)
    make = {"rank": 0, "collate": ids}
    with StreamReader(stream, plan_at=always(batch_plan(8, 2, 1)), **make) as reader:
        reader.next_step()
        checkpoint = reader.state()
        lost = reader.next_step()
    with StreamReader(stream, plan_at=always(batch_plan(8, 4, 1)), **make) as reader:
        reader.load(checkpoint)
        again = reader.next_step()
    assert list(chain(*again)) == list(chain(*lost))


def test_other_data_are_refused_on_resume(write_documents, tmp_path) -> None:
    write_documents(Location.of(tmp_path), [[n] for n in range(2, 50)])
    make = {"plan_at": always(batch_plan(4, 4, 1)), "rank": 0, "collate": ids}
    stream = RowStream(Location.of(tmp_path), seed=1)
    with StreamReader(stream, **make) as reader:
        state = reader.state()
    with (
        StreamReader(RowStream(Location.of(tmp_path), seed=2), **make) as reader,
        pytest.raises(DataError, match="training data changed since the checkpoint"),
    ):
        reader.load(state)


def test_an_error_while_reading_ahead_is_raised_where_the_step_is_asked_for() -> None:
    def collate(samples: Sequence[Sample]) -> list[object]:
        if samples[0]["id"] == (0, 4):
            raise ValueError("sample 4 is broken")
        return ids(samples)

    reader = StreamReader(
        Counting(100), plan_at=always(batch_plan(2, 2, 1)), rank=0, collate=collate
    )
    assert [reader.next_step(), reader.next_step()] == [[[(0, 0), (0, 1)]], [[(0, 2), (0, 3)]]]
    for _ in range(2):
        with pytest.raises(ValueError, match="sample 4 is broken"):
            reader.next_step()
    assert reader.position == 4
    reader.close()


def test_only_a_few_steps_are_read_ahead() -> None:
    made = []
    at_rest = threading.Event()

    def collate(samples: Sequence[Sample]) -> list[object]:
        made.append(1)
        if len(made) == 4:
            at_rest.set()
        return ids(samples)

    reader = StreamReader(
        Counting(100),
        plan_at=always(batch_plan(1, 1, 1)),
        rank=0,
        collate=collate,
        prefetched_steps=2,
    )
    reader.next_step()
    # One was handed out, two wait in the queue, one waits for room.
    assert at_rest.wait(timeout=10)
    assert not threading.Event().wait(timeout=0.3)
    assert len(made) == 4
    reader.close()


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("stream-reader")]


def test_no_thread_is_left_after_close_or_when_the_reader_is_forgotten() -> None:
    make = {"plan_at": always(batch_plan(1, 1, 1)), "rank": 0, "collate": ids}
    reader = StreamReader(Counting(10), **make)
    reader.next_step()
    reader.close()
    reader.close()
    assert reading_threads() == []
    forgotten = StreamReader(Counting(10), **make)
    forgotten.next_step()
    del forgotten
    gc.collect()
    for thread in reading_threads():
        thread.join(timeout=10)
    assert reading_threads() == []


def test_a_closed_reader_goes_on_where_it_was() -> None:
    make = {"plan_at": always(batch_plan(2, 1, 2)), "rank": 1, "collate": ids}
    reader = StreamReader(Counting(10), **make)
    assert reader.next_step() == [[(0, 1)]]
    reader.close()
    assert reader.next_step() == [[(0, 3)]]
    reader.close()


def test_waiting_for_data_is_measured() -> None:
    release = threading.Event()

    def collate(samples: Sequence[Sample]) -> list[object]:
        release.wait(timeout=10)
        return ids(samples)

    reader = StreamReader(
        Counting(10), plan_at=always(batch_plan(1, 1, 1)), rank=0, collate=collate
    )
    timer = threading.Timer(0.3, release.set)
    timer.start()
    reader.next_step()
    assert 0.25 < reader.data_wait_s < 5.0
    reader.close()


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 200), batch=st.integers(1, 33), world_size=st.integers(1, 7))
def test_evaluation_counts_every_row_once_in_as_many_batches_on_every_rank(
    rows, batch, world_size
) -> None:
    ranks = [
        list(evaluation_batches(Counting(rows), batch, rank, world_size))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(found.samples for batches in ranks for found in batches)
    counted = [
        sample["id"]
        for batches in ranks
        for found in batches
        if not found.is_filler
        for sample in found.samples
    ]
    assert sorted(counted) == [(0, row) for row in range(rows)]


@given(micro_batch=st.integers(1, 9), accumulation=st.integers(1, 9), world_size=st.integers(1, 9))
def test_the_shares_of_all_ranks_are_the_global_batch(
    micro_batch, accumulation, world_size
) -> None:
    plan = batch_plan(micro_batch * accumulation * world_size, micro_batch, world_size)
    assert plan.accumulation == accumulation
    for rank in range(world_size):
        micro_batches = step_positions(plan, rank, plan.global_batch * 3)
        assert {position % world_size for position in chain(*micro_batches)} == {rank}


@pytest.mark.parametrize(
    ("global_batch", "micro_batch", "world_size", "sentence"),
    [
        (100, 8, 3, r"batch 100 .* micro batches of 8 on 3 workers .*nearest is batch 96 or 120$"),
        (96, 7, 4, r"nearest is batch 84 or 112, or micro_batch 6 or 8$"),
        (4, 8, 1, r"on 1 worker \(8 samples at a time\); nearest is batch 8, or micro_batch 4$"),
        (3, 2, 4, r"nearest is batch 8$"),
        (0, 1, 1, "batch must be at least 1, not 0"),
        (8, -1, 1, "micro_batch must be at least 1, not -1"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused_with_the_nearest_ones(
    global_batch, micro_batch, world_size, sentence
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        batch_plan(global_batch, micro_batch, world_size)


@given(
    global_batch=st.integers(1, 500), micro_batch=st.integers(1, 40), world_size=st.integers(1, 9)
)
def test_every_value_that_a_refusal_names_is_accepted(
    global_batch, micro_batch, world_size
) -> None:
    try:
        batch_plan(global_batch, micro_batch, world_size)
    except ConfigError as error:
        batches, _, micro_batches = (
            str(error).partition("nearest is batch ")[2].partition(", or micro_batch ")
        )
        for value in batches.split(" or "):
            batch_plan(int(value), micro_batch, world_size)
        for value in micro_batches.split(" or ") if micro_batches else []:
            batch_plan(global_batch, int(value), world_size)
