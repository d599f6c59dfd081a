"""Text files as documents: which are read, what becomes of them, and that it is done once."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from heliostat.errors import DataError
from heliostat.storage import Location
from jobs.corpora.text_files import text_files


def encode(text: str) -> list[int]:
    return [1000 + letter for letter in text.encode()]


def test_text_and_markdown_are_read_compressed_or_not(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "below").mkdir(parents=True)
    (folder / "b.txt").write_text("plain")
    (folder / "below" / "a.md.gz").write_bytes(gzip.compress(b"# packed"))
    (folder / "c.html").write_text("<p>left out</p>")
    (folder / "d.gz").write_bytes(gzip.compress(b"of no known kind"))
    cache = Location.of(tmp_path / "cache")
    table = text_files(folder, encode, tokenizer="bytes", cache=cache)
    rows = {
        path: bytes(token - 1000 for token in tokens)
        for path, tokens in zip(
            table.column("path").to_pylist(), table.column("tokens").to_pylist(), strict=True
        )
    }
    assert rows == {"b.txt": b"plain", "below/a.md.gz": b"# packed"}

    def refuse(text: str) -> list[int]:
        raise AssertionError("read again")

    assert text_files(folder, refuse, tokenizer="bytes", cache=cache).fingerprint == (
        table.fingerprint
    )
    (folder / "b.txt").write_text("other")
    again = text_files(folder, encode, tokenizer="bytes", cache=cache)
    assert again.fingerprint != table.fingerprint


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no text: expected files that end in \.txt or \.md"):
        text_files(tmp_path, encode, tokenizer="bytes", cache=Location.of(tmp_path / "cache"))
