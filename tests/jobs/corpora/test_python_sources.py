"""The sources of the running Python as a table, and windows drawn from it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from heliostat.config.jobs import find_jobs
from heliostat.data.table import Table
from heliostat.errors import DataError
from heliostat.storage import Location
from jobs.corpora.python_sources import collection_root, python_sources, side_of, source_files
from jobs.corpora.windows import WindowStream, fixed_windows


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Location:
    return Location.of(str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def test_side(cache: Location) -> Table:
    return python_sources(cache, "test")


def test_a_row_is_a_file_of_the_standard_library_byte_for_byte(test_side: Table) -> None:
    root = collection_root("standard_library")
    rows = test_side.take(range(test_side.rows)).to_pylist()
    assert len(rows) > 30
    for row in rows:
        content = (root / row["path"]).read_bytes()
        assert bytes(row["tokens"]) == content
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        assert row["split"] == "test"
        assert len(content) >= 2048
        assert int(hashlib.md5(Path(row["path"]).name.encode()).hexdigest(), 16) % 10 == 0
        assert len(Path(row["path"]).parts) <= 2
        assert not {"test", "tests", "encodings", "site-packages"} & set(Path(row["path"]).parts)


def test_the_sides_share_no_file_name_and_have_the_expected_sizes(
    cache: Location, test_side: Table
) -> None:
    train = python_sources(cache, "train")
    names = [
        {Path(path).name for path in table.column("path").to_pylist()}
        for table in (train, test_side)
    ]
    assert not names[0] & names[1]
    # CPython 3.11: about 8.5 MB and 1.25 MB.
    assert 7e6 < train.lengths("tokens").sum() < 11e6
    assert 0.8e6 < test_side.lengths("tokens").sum() < 1.8e6


def test_preparing_again_finds_the_table(cache: Location, test_side: Table) -> None:
    assert python_sources(cache, "test").location == test_side.location


def test_the_other_collection_is_the_installed_package() -> None:
    root = collection_root("transformers")
    files = source_files(root, "transformers")
    assert root / "modeling_utils.py" in files
    assert side_of("modeling_utils.py") in ("train", "test")


def test_corpora_are_no_job() -> None:
    assert "corpora" not in find_jobs(Path(__file__).parents[3])


def test_windows_lie_inside_one_document_and_depend_on_the_position_only(test_side: Table) -> None:
    stream = WindowStream(test_side.location, length=64, seed=3)
    texts = [bytes(row) for row in test_side.column("tokens").to_pylist()]
    positions = [0, 1, 7, stream.epoch_size + 7]
    samples = stream.samples(positions)
    for sample in samples:
        window = bytes(np.asarray(sample["input_ids"]).astype(np.uint8))
        assert len(window) == 64
        assert any(window in text for text in texts)
    again = WindowStream(test_side.location, length=64, seed=3).samples([7])[0]
    assert np.array_equal(again["input_ids"], samples[2]["input_ids"])
    assert samples[2]["id"] == samples[3]["id"] == 7
    assert not np.array_equal(samples[2]["input_ids"], samples[3]["input_ids"])
    other = WindowStream(test_side.location, length=64, seed=4)
    assert other.fingerprint != stream.fingerprint
    assert not np.array_equal(other.samples([7])[0]["input_ids"], samples[2]["input_ids"])


def test_the_asked_share_of_windows_repeats_its_beginning(test_side: Table) -> None:
    plain = WindowStream(test_side.location, length=64, seed=3)
    mixed = WindowStream(test_side.location, length=64, seed=3, repeats=0.2)
    positions = range(2000)
    changed, periods = 0, set()
    for one, other in zip(plain.samples(positions), mixed.samples(positions), strict=True):
        first, second = np.asarray(one["input_ids"]), np.asarray(other["input_ids"])
        if np.array_equal(first, second):
            continue
        changed += 1
        period = next(p for p in range(8, 33) if np.array_equal(second, np.resize(first[:p], 64)))
        periods.add(period)
    assert changed / 2000 == pytest.approx(0.2, abs=0.03)
    assert {8, 32} <= periods


def test_fixed_windows_are_different_and_found_again(test_side: Table) -> None:
    windows = fixed_windows(test_side, length=513, windows=256, seed=1)
    assert windows.tokens.shape == (256, 513)
    assert len(set(zip(windows.paths, windows.starts, strict=True))) == 256
    again = fixed_windows(test_side, length=513, windows=256, seed=1)
    assert again.fingerprint == windows.fingerprint
    root = collection_root("standard_library")
    text = (root / windows.paths[0]).read_bytes()
    assert bytes(windows.tokens[0]) == text[windows.starts[0] : windows.starts[0] + 513]
    with pytest.raises(DataError, match="windows of 513 tokens, but"):
        fixed_windows(test_side, length=513, windows=10**9, seed=1)
