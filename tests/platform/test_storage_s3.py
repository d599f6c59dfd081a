"""Locations on an S3 server."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heliostat.errors import StorageError, UserError
from heliostat.storage import Location, digest


def test_what_was_put_is_read_back(s3_bucket: Location, tmp_path: Path) -> None:
    place = s3_bucket / "runs" / "ü 100%" / "a file"
    place.write_text("hello")
    place.write_text("hello again")
    assert place.read_text() == "hello again"
    assert place.size() == 11
    assert place.exists()
    assert not place.is_dir()
    assert place.parent.is_dir()
    local = tmp_path / "same"
    local.write_text("hello again")
    assert digest(place) == digest(local)
    with place.open_input() as file:
        file.seek(6)
        assert file.read() == b"again"


def test_listing_and_deleting(s3_bucket: Location) -> None:
    for name in ("b", "a", "deep/er/c"):
        (s3_bucket / "folder" / name).write_bytes(b"123")
    folder = s3_bucket / "folder"
    assert [child.name for child in folder.list()] == ["a", "b", "deep"]
    assert folder.sizes() == {"a": 3, "b": 3}
    assert folder.list()[0].read_bytes() == b"123"
    (folder / "a").delete()
    (folder / "a").delete()
    (folder / "deep").delete()
    assert [child.name for child in folder.list()] == ["b"]
    assert (s3_bucket / "nothing").list() == []


def test_an_empty_folder_can_be_made(s3_bucket: Location) -> None:
    (s3_bucket / "empty" / "folder").make_dir()
    assert (s3_bucket / "empty" / "folder").is_dir()
    assert (s3_bucket / "empty" / "folder").list() == []


def test_trees_go_up_and_come_down(s3_bucket: Location, tmp_path: Path) -> None:
    source = tmp_path / "source"
    contents = {f"part {n}/file-{n}.bin": bytes([n]) * (n * 100_000) for n in range(12)}
    for name, content in contents.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    (s3_bucket / "tree").upload(source)
    (s3_bucket / "tree").download(tmp_path / "back")
    for name, content in contents.items():
        assert (tmp_path / "back" / name).read_bytes() == content


UPLOAD = """
import sys
from pathlib import Path
from heliostat.storage import Location
place = Location.of(sys.argv[1])
place.exists()
print("ready", flush=True)
place.upload(Path(sys.argv[2]))
"""


def test_an_upload_that_is_killed_leaves_the_whole_object_or_none(
    s3_bucket: Location, tmp_path: Path
) -> None:
    source = tmp_path / "big"
    source.write_bytes(random.Random(1).randbytes(64 << 20))
    for attempt in range(4):
        place = s3_bucket / f"big-{attempt}"
        process = subprocess.Popen(
            [sys.executable, "-c", UPLOAD, place.uri, str(source)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.1 * attempt)
        process.kill()
        process.wait()
        assert not place.exists() or digest(place) == digest(source)
    place.upload(source)
    assert digest(place) == digest(source)


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda bucket: (bucket / "none").read_bytes(), "/none.* does not exist"),
        (lambda bucket: (bucket / "none").size(), "/none.* does not exist"),
        (lambda bucket: digest(bucket / "none"), "/none.* does not exist"),
        (lambda bucket: (bucket / "file").list(), "is a file; a folder was expected"),
    ],
)
def test_mistakes_end_in_one_sentence(s3_bucket: Location, act, sentence: str) -> None:
    (s3_bucket / "file").write_bytes(b"")
    with pytest.raises(UserError, match=sentence):
        act(s3_bucket)


def test_a_bucket_that_is_not_there_is_named(s3_endpoint: str, s3_bucket: Location) -> None:
    nowhere = Location.of(f"s3://no-such-bucket/x?endpoint_override={s3_endpoint}&scheme=http")
    with pytest.raises(UserError, match=r"no-such-bucket.* there is no such bucket"):
        nowhere.write_bytes(b"1")
    with pytest.raises(UserError, match=r"no-such-bucket.* there is no such bucket"):
        nowhere.make_dir()


def test_a_misspelled_parameter_of_a_uri_is_named() -> None:
    with pytest.raises(UserError, match="endpont_override"):
        Location.of("s3://bucket/key?endpont_override=localhost:1").exists()


@pytest.mark.slow
def test_a_store_that_is_down_is_tried_again_and_then_named(s3_endpoint: str) -> None:
    down = Location.of("s3://bucket/key?endpoint_override=127.0.0.1:1&scheme=http")
    with pytest.raises(StorageError, match=r"s3://bucket/key.* still fails after 4 attempts"):
        down.exists()
