"""Locations on the local disk."""

from __future__ import annotations

import errno
import hashlib
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.errors import StorageError, UserError
from heliostat.retry import Backoff, with_retries
from heliostat.storage import Location, digest, remove_temporaries, temporary_path

QUICK = Backoff(attempts=4, first_wait_s=0.001, longest_wait_s=0.002)
NAMES = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1).filter(
    lambda name: name not in {".", ".."}
)


def test_a_relative_path_is_resolved_against_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    location = Location.of("runs/../runs/one")
    monkeypatch.chdir("/")
    assert location.uri == str(tmp_path / "runs" / "one")


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert Location.of("~/runs").uri == "/somewhere/runs"


def test_a_file_uri_is_a_local_path() -> None:
    location = Location.of("file:///a%20b/c")
    assert location.is_local
    assert location.local_path == Path("/a b/c")


@given(name=NAMES)
@pytest.mark.parametrize(
    "base", ["/data/set", "s3://bucket/key?endpoint_override=localhost:1&scheme=http", "gs://b"]
)
def test_child_name_parent_and_uri_are_consistent(base: str, name: str) -> None:
    folder = Location.of(base)
    child = folder / name
    assert child.name == name
    assert child.parent == folder
    assert pickle.loads(pickle.dumps(child)) == child
    if not folder.is_local:
        assert Location.of(child.uri) == child


def test_children_keep_the_query_of_a_uri() -> None:
    folder = Location.of("s3://bucket/runs/?endpoint_override=localhost:9000&scheme=http")
    expected = "s3://bucket/runs/a/b?endpoint_override=localhost:9000&scheme=http"
    assert (folder / "a" / "b").uri == expected
    assert (folder / "a/b").uri == expected


def test_a_bucket_is_its_own_parent_and_has_its_name() -> None:
    bucket = Location.of("s3://bucket")
    assert (bucket / "x").parent == bucket
    assert bucket.parent == bucket
    assert bucket.name == "bucket"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "an empty string is no location"),
        ("s3a://bucket/key", "did you mean s3://"),
        ("ftp://host/key", "known are s3, gs"),
        ("s3:///key", "names no bucket"),
    ],
)
def test_what_is_no_location_is_refused_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Location.of(text)


def test_a_secret_in_a_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserError, match="must not hold a secret") as caught:
        Location.of("s3://AKIAEXAMPLE:hunter2@bucket/key")
    assert "hunter2" not in str(caught.value)


def test_a_uri_has_no_local_path() -> None:
    with pytest.raises(UserError, match="not on this machine"):
        _ = Location.of("s3://bucket/key").local_path


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    place = Location.of(tmp_path) / "new folder" / "ü 100%.txt"
    place.write_text("grüße")
    assert place.read_text() == "grüße"
    assert place.size() == len("grüße".encode())
    assert digest(place) == digest(place.local_path)
    assert digest(place) == hashlib.sha256("grüße".encode()).hexdigest()
    with place.open_input() as file:
        file.seek(2)
        assert file.read(3) == "grüße".encode()[2:5]


def test_a_listing_is_sorted_and_leaves_out_writes_under_way(tmp_path: Path) -> None:
    folder = Location.of(tmp_path)
    for name in ("b", "a", "c/d"):
        (folder / name).write_bytes(b"12")
    temporary_path(tmp_path / "e").write_bytes(b"half")
    assert [child.name for child in folder.list()] == ["a", "b", "c"]
    assert folder.sizes() == {"a": 2, "b": 2}
    assert remove_temporaries(folder) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_folder_that_is_not_there_lists_as_empty(tmp_path: Path) -> None:
    assert (Location.of(tmp_path) / "nothing").list() == []


def test_delete_takes_files_and_trees_and_nothing(tmp_path: Path) -> None:
    folder = Location.of(tmp_path) / "tree"
    (folder / "deep" / "file").write_bytes(b"1")
    (folder / "deep" / "file").delete()
    assert (folder / "deep").is_dir()
    folder.delete()
    assert not folder.exists()
    folder.delete()


def test_trees_are_copied_with_their_folders(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("a.txt", "deep/b.txt"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    copy = Location.of(tmp_path / "copy")
    copy.upload(source)
    copy.download(tmp_path / "back")
    assert (tmp_path / "back" / "deep" / "b.txt").read_text() == "deep/b.txt"
    assert (tmp_path / "back" / "a.txt").read_text() == "a.txt"


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda tmp: (tmp / "none").read_bytes(), "none does not exist"),
        (lambda tmp: (tmp / "none").size(), "none does not exist"),
        (lambda tmp: (tmp / "none").open_input(), "none does not exist"),
        (lambda tmp: digest(tmp / "none"), "none does not exist"),
        (lambda tmp: (tmp / "none").download(Path("/tmp/x")), "none does not exist"),
        (lambda tmp: (tmp / "x").upload(Path("/no/such/file")), "/no/such/file does not exist"),
        (lambda tmp: tmp.read_bytes(), "is a folder; a file was expected"),
        (lambda tmp: tmp.size(), "is a folder; a file was expected"),
        (lambda tmp: (tmp / "file").list(), "is a file; a folder was expected"),
        (lambda tmp: (tmp / "file" / "x").write_bytes(b""), "is a file, not a folder"),
        (lambda tmp: (tmp / "file" / "x").read_bytes(), "is a file, not a folder"),
    ],
)
def test_mistakes_end_in_one_sentence_that_names_the_place(tmp_path, act, sentence) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((UserError, StorageError), match=sentence):
        act(Location.of(tmp_path))


def test_a_failure_that_passes_is_tried_again() -> None:
    answers = [OSError(errno.EIO, "io"), OSError("AWS Error SLOW_DOWN during GetObject"), None]

    def action() -> str:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return "done"

    assert with_retries(action, "s3://bucket/key", QUICK) == "done"


@pytest.mark.parametrize(
    ("error", "raised", "calls"),
    [
        (OSError("AWS Error NETWORK_CONNECTION during PutObject"), StorageError, 4),
        (OSError(errno.ENOSPC, "No space left on device"), StorageError, 1),
        (OSError("AWS Error ACCESS_DENIED during PutObject operation"), UserError, 1),
        (OSError("AWS Error NO_SUCH_BUCKET during PutObject operation"), UserError, 1),
        (PermissionError(errno.EACCES, "Permission denied"), UserError, 1),
        (FileNotFoundError(errno.ENOENT, "No such file"), UserError, 1),
    ],
)
def test_attempts_are_bounded_and_hopeless_ones_are_not_repeated(error, raised, calls) -> None:
    made = []

    def action() -> None:
        made.append(1)
        raise error

    with pytest.raises(raised, match=r"s3://bucket/key") as caught:
        with_retries(action, "s3://bucket/key", QUICK)
    assert len(made) == calls
    assert "\n" not in str(caught.value)


def test_waits_double_up_to_a_limit() -> None:
    backoff = Backoff(first_wait_s=1.0, longest_wait_s=5.0)
    for failures, longest in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (9, 5.0)):
        assert longest / 2 <= backoff.wait_s(failures) <= longest


WRITE_FOR_EVER = """
import itertools, sys
from heliostat.storage import Location
place = Location.of(sys.argv[1])
for number in itertools.count():
    place.write_bytes(bytes([number % 256]) * 3_000_000)
    if number == 0:
        print("ready", flush=True)
"""


def test_a_writer_that_is_killed_leaves_the_old_or_the_new_content_whole(tmp_path: Path) -> None:
    place = tmp_path / "file"
    for attempt in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, str(place)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random.Random(attempt).uniform(0.0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
        content = place.read_bytes()
        assert len(content) == 3_000_000
        assert len(set(content)) == 1
        assert [child.name for child in Location.of(tmp_path).list()] == ["file"]


def test_importing_storage_loads_no_heavy_library() -> None:
    code = (
        "import sys, heliostat.storage;"
        "assert not {'pyarrow', 'torch', 'ray', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
