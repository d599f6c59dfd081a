"""A checkpoint is committed whole or not at all, whatever happens to who writes it."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from heliostat.checkpoint.durable import write_file
from heliostat.checkpoint.manifest import MANIFEST_NAME, committed, to_json
from heliostat.checkpoint.safe_load import deepspeed_types
from heliostat.cluster.ray_cluster import worker_environment
from heliostat.storage import Location, digest
from tiny_task import write_rows

SAVING = Path(__file__).parents[2] / "support" / "saving.py"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Location:
    return write_rows(Location.of(tmp_path_factory.mktemp("rows")), 4, seed=1)


def start(mode: str, folder: Location, rows: Location) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SAVING), mode, folder.uri, rows.uri],
        env={**os.environ, **worker_environment(gpu=False), "LOCAL_RANK": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(mode: str, folder: Location, rows: Location) -> tuple[dict[str, float], str, int]:
    process = start(mode, folder, rows)
    out, err = process.communicate(timeout=300)
    lines = [line for line in out.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}, err, process.returncode


def kill_while_saving(folder: Location, rows: Location, rounds: int) -> list[int]:
    """Where each round went on from; every round is killed at a random moment of its saving."""
    dice, resumed = random.Random(rounds), []
    for _ in range(rounds):
        process = start("forever", folder, rows)
        assert process.stdout is not None
        line = process.stdout.readline()
        while line and not line.startswith("{"):
            line = process.stdout.readline()
        assert line, process.communicate()[1]
        resumed.append(json.loads(line)["resumed"])
        # Long enough for a few checkpoints to be committed; a random phase of the next one.
        until_committed(folder, resumed[-1] + 2, process)
        time.sleep(dice.uniform(0, 0.1))
        process.kill()
        process.communicate()
    return resumed


def until_committed(folder: Location, step: int, process: subprocess.Popen[str]) -> None:
    while not (folder / f"step-{step:08d}" / MANIFEST_NAME).exists():
        assert process.poll() is None, process.communicate()[1]
        entries = [manifest.state.step for _, manifest in committed(folder)]
        if entries and entries[-1] > step:
            return
        time.sleep(0.002)


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_at_any_moment_of_saving_leaves_a_newest_checkpoint_that_loads(
    checkpoints: Location, rows: Location, rounds: int
) -> None:
    resumed = kill_while_saving(checkpoints, rows, rounds)
    last, err, code = finish("check", checkpoints, rows)
    assert code == 0, err
    steps = [*resumed, last["resumed"]]
    assert all(later >= before + 2 for before, later in pairwise(steps))
    kept = {folder.name for folder, _ in committed(checkpoints)}
    assert {folder.name for folder in checkpoints.list()} == kept, "orphans are collected"
    # A kill between a commit and its tidying leaves one more, which goes with the next commit.
    assert len(kept) <= 2 + 1


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, rows: Location) -> Location:
    """A folder with one real checkpoint."""
    folder = Location.of(tmp_path_factory.mktemp("saved"))
    _, err, code = finish("once", folder, rows)
    assert code == 0, err
    return folder


def test_a_manifest_lists_every_file_of_its_folder(saved: Location) -> None:
    folder, manifest = committed(saved)[-1]
    listed = {file.name: file.size for file in manifest.files}
    assert folder.sizes() == {**listed, MANIFEST_NAME: (folder / MANIFEST_NAME).size()}


def test_a_pickle_that_would_run_code_is_refused_even_with_a_matching_manifest(
    saved: Location, rows: Location, tmp_path: Path
) -> None:
    checkpoints = Location.of(tmp_path / "attacked")
    checkpoints.upload(saved.local_path)
    folder, manifest = committed(checkpoints)[-1]
    name = next(file.name for file in manifest.files if "model_states" in file.name)
    marker = tmp_path / "was here"
    torch.save({"module": Evil(marker)}, (folder / name).local_path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load((folder / name).local_path, weights_only=True)
    records = [
        replace(file, size=(folder / name).size(), sha256=digest(folder / name))
        if file.name == name
        else file
        for file in manifest.files
    ]
    (folder / MANIFEST_NAME).write_text(to_json(replace(manifest, files=records)))
    _, err, code = finish("check", checkpoints, rows)
    assert code != 0
    assert "Weights only load failed" in err
    assert not marker.exists()


def test_checkpoints_of_every_kind_hold_no_class_but_those_allowed_by_name(
    tmp_path: Path, rows: Location
) -> None:
    """When an upgrade of DeepSpeed adds one, it is noticed here and not on a resume."""
    _, err, code = finish("all", Location.of(tmp_path), rows)
    assert code == 0, err
    files = list(tmp_path.rglob("*.pt"))
    assert len(files) >= 2 * 8
    found = {name for file in files for name in get_unsafe_globals_in_checkpoint(file)}
    allowed = {f"{kind.__module__}.{kind.__qualname__}" for kind in deepspeed_types()}
    assert found <= allowed


def test_the_private_names_of_deepspeed_that_are_replaced_still_exist() -> None:
    import deepspeed.ops
    from deepspeed.runtime.engine import DeepSpeedEngine

    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__
    assert callable(DeepSpeedEngine._copy_recovery_script)
    assert callable(DeepSpeedEngine._create_zero_checkpoint_files)


@pytest.mark.slow
def test_training_stands_still_for_a_fraction_of_a_blocking_save(
    tmp_path: Path, rows: Location, record_property
) -> None:
    times, err, code = finish("time", Location.of(tmp_path), rows)
    assert code == 0, err
    record_property("times", times)
    assert times["bytes"] > 95e6
    assert times["stalled_s"] < times["blocking_s"] / 2, times


def test_a_file_is_hashed_as_it_is_written_and_loads(tmp_path: Path) -> None:
    data = {"a": torch.arange(1000.0), "b": [1, "two", None]}
    record = write_file(tmp_path / "x.pt", data)
    content = (tmp_path / "x.pt").read_bytes()
    assert (record.size, record.sha256) == (len(content), sha256(content).hexdigest())
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    assert torch.equal(loaded["a"], data["a"])
    assert loaded["b"] == data["b"]


def test_on_a_full_disk_the_reason_is_told_and_the_space_given_back(full_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left on device"):
        write_file(full_disk / "x.pt", {"a": torch.zeros(1_000_000)})
    assert list(full_disk.iterdir()) == []
