"""A process that saves checkpoints of a real engine, to be killed, attacked or timed.

`python saving.py MODE FOLDER ROWS`: `forever` saves until it is killed, going on from the newest
checkpoint of the folder and proving that it loaded; `once` saves one and ends; `check` only loads;
`time` compares the stand-still of a blocking save with ours on 100 MB of state; `all` saves one for
every ZeRO stage and precision. One line of JSON on standard output says what happened.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from heliostat.checkpoint.manifest import FORMAT, Manifest, TrainState, tag_of
from heliostat.checkpoint.restore import load, newest_whole, random_state
from heliostat.checkpoint.retention import collect_orphans
from heliostat.checkpoint.writer import CheckpointWriter, WriterPlace
from heliostat.data.reader import batch_plan
from heliostat.storage import Location
from heliostat.train.config import FitConfig, ZeroConfig
from heliostat.train.engine import build_engine
from tiny_task import TinyTask

WIDTH = {"time": 2900}
"""8.4 million weights with two moments each are 100 MB."""


def manifest_at(step: int) -> Manifest:
    state = TrainState(step, step * 2, {}, None, None, 0, {}, 0.0)
    return Manifest(FORMAT, tag_of(step), state, 1, 0, "fp32", "abc", "f", {}, [])


def make_engine(mode: str, rows: Location, stage: int = 0, precision: str = "fp32"):
    task = TinyTask(train=rows, evaluation=rows, width=WIDTH.get(mode, 256))
    config = FitConfig(
        batch=2, micro_batch=2, steps=10, precision=precision, zero=ZeroConfig(stage=stage)
    )
    engine = build_engine(task, task.model(), config, batch_plan(2, 2, 1), universal=False)
    batch = task.collate(task.train_data().samples([0, 1]))
    engine.backward(task.loss(engine, batch)["lm"].total)
    engine.step()
    return engine


def writer_for(folder: Location) -> CheckpointWriter:
    place = WriterPlace(folder, f"{os.getpid()}", rank=0, world_size=1, keep=2)
    return CheckpointWriter(place, before_commit=lambda: None, last_committed=None)


def resume(engine, folder: Location) -> int:
    """Load the newest checkpoint; its weights must be those that its step was saved with."""
    collect_orphans(folder)
    found, _ = newest_whole(folder, 0, 1, lambda value: value, lambda value: [value])
    if found is None:
        return 0
    load(engine, folder.local_path, found[1].tag)
    step = found[1].state.step
    assert torch.all(engine.module.hidden.bias == float(step)), "weights of another step"
    return step


def save(engine, writer: CheckpointWriter, step: int) -> None:
    writer.wait_for_copies()
    with torch.no_grad():
        engine.module.hidden.bias.fill_(float(step))
    failure = writer.settle(lambda flag: flag)
    assert failure is None, failure
    writer.save(engine, manifest_at(step), random_state(), {})


def save_forever(engine, folder: Location, step: int) -> None:
    writer = writer_for(folder)
    while True:
        step += 1
        save(engine, writer, step)


def save_once(engine, folder: Location, step: int) -> None:
    writer = writer_for(folder)
    save(engine, writer, step + 1)
    failure = writer.settle(lambda flag: flag)
    assert failure is None, failure


def compare(engine, folder: Location) -> dict[str, float]:
    """Seconds that training stands still for a save: DeepSpeed's own, and ours after the first."""
    blocking = []
    for turn in range(3):
        began = time.perf_counter()
        engine.save_checkpoint(str(folder.local_path / "plain"), tag=f"{turn}")
        for file in (folder.local_path / "plain" / f"{turn}").iterdir():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        blocking.append(time.perf_counter() - began)
    writer, stalls = writer_for(folder / "ours"), []
    for step in range(1, 5):
        before = writer.stalled_s
        save(engine, writer, step)
        # In a training the next forward and backward pass run meanwhile.
        writer.wait_for_copies()
        stalls.append(writer.stalled_s - before)
        began = time.perf_counter()
        assert writer._thread is not None
        writer._thread.join()
    writer.settle(lambda flag: flag)
    size = sum(file.stat().st_size for file in (folder.local_path / "ours").rglob("*.pt")) / 2
    return {"blocking_s": min(blocking), "stalled_s": min(stalls), "bytes": size}


def save_all(folder: Location, rows: Location) -> None:
    for stage in range(4):
        for precision in ("fp32", "bf16"):
            engine = make_engine("all", rows, stage, precision)
            writer = writer_for(folder / f"{stage}-{precision}")
            writer.save(engine, manifest_at(1), random_state(), {})
            failure = writer.settle(lambda flag: flag)
            assert failure is None, failure


def main(mode: str, folder: Location, rows: Location) -> None:
    store = tempfile.mktemp(prefix="heliostat-store-")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    if mode == "all":
        save_all(folder, rows)
        return
    engine = make_engine(mode, rows)
    if mode == "time":
        print(json.dumps(compare(engine, folder)), flush=True)
        return
    step = resume(engine, folder)
    print(json.dumps({"resumed": step}), flush=True)
    if mode == "forever":
        save_forever(engine, folder, step)
    if mode == "once":
        save_once(engine, folder, step)


if __name__ == "__main__":
    main(sys.argv[1], Location.of(Path(sys.argv[2])), Location.of(Path(sys.argv[3])))
