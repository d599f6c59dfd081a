"""What is read again while an endpoint runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from heliostat.serve.app import watched_keys
from heliostat.serve.keys import add_key, remove_key
from heliostat.serve.watched import Watched
from heliostat.storage import Location


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_changed_file_counts_and_one_that_cannot_be_read_leaves_the_last_value(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "number"
    file.write_text("1")
    number = Watched(lambda: int(file.read_text()), 0.02, "the number")
    assert number() == 1
    file.write_text("2")
    until(lambda: number() == 2)
    file.write_text("secret")
    until(lambda: "the number cannot be read now (ValueError)" in caplog.text)
    assert "secret" not in caplog.text
    assert number() == 2
    file.write_text("3")
    until(lambda: number() == 3)
    number.close()


def test_what_cannot_be_read_at_first_is_raised() -> None:
    with pytest.raises(FileNotFoundError):
        Watched(lambda: Path("/nowhere/at/all").read_text(), 1, "nothing")


def test_a_key_that_is_taken_away_opens_nothing_any_more(tmp_path: Path) -> None:
    place = Location.of(tmp_path / "keys.json")
    first, second = add_key(place, "crm"), add_key(place, "shop")
    ring = watched_keys(place.uri)
    assert (ring().holder(first), ring().holder(second)) == ("crm", "shop")
    remove_key(place, "crm")
    third = add_key(place, "new")
    until(lambda: ring().holder(third) == "new")
    assert ring().holder(first) is None
    assert ring().holder(second) == "shop"
    ring.close()
