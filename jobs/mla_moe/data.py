"""The tables that mla_moe reads, and its streams: windows to train on, all rows to measure on.

Python sources are bytes, so the vocabulary is 256, or the pieces of a tokenizer. Between two files
stands the byte 0, which no source holds, or the tokenizer's own token. Of the rows of the test side
every so-manieth is set aside as validation: it may be looked at during training and in a search;
the others only measure the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from heliostat.data.stream import PackedStream, Sample
from heliostat.data.table import Table
from heliostat.errors import BundleError, ConfigError
from heliostat.runs.bundle import Part, load_bundle
from heliostat.runs.inputs import Input
from heliostat.runs.manifest import MANIFEST_NAME
from heliostat.runs.run import Run
from heliostat.serve.generation.hf_codec import FILES, HfCodec
from heliostat.storage import Location
from jobs.corpora.pieces import as_pieces, learn_pieces
from jobs.corpora.python_sources import Collection, python_sources
from jobs.corpora.tokenizer import FILE, TextCodec, codec_files
from jobs.mla_moe.config import BPE, Config


@dataclass(frozen=True)
class Corpus:
    """The two sides."""

    train: Location
    test: Location
    inputs: tuple[Input, ...]
    tokenizer: Mapping[str, Part] | None = None
    """Files of the tokenizer, where there is one."""


def open_corpus(config: Config, run: Run) -> Corpus:
    """Prepare the sources, or open the tables that are named.

    Raises:
        ConfigError: the tokenizer that is named does not fit the model.
        DataError: it cannot be read, or the sources give fewer pieces than are asked for.
    """
    data = config.data
    if data.train is not None and data.test is not None:
        owned = Input("text", "real", f"tables {data.train} and {data.test}", "of their owner")
        named = _named(config)
        own = None if named is None else named[1]
        return Corpus(Location.of(data.train), Location.of(data.test), (owned,), own)
    collection: Collection = (
        "transformers" if data.collection == "transformers" else "standard_library"
    )
    workers = data.preparation_workers
    sides = [
        python_sources(run.cache, side, collection=collection, workers=workers)
        for side in ("train", "test")
    ]
    codec, files = _codec(config, sides[0], run.cache)
    if codec is not None:
        sides = [as_pieces(side, codec, run.cache, workers=workers) for side in sides]
    what = (
        "the standard library" if collection == "standard_library" else "the package transformers"
    )
    licence = "PSF-2.0" if collection == "standard_library" else "Apache-2.0"
    form = "bytes" if codec is None else f"{codec.vocab_size:,} pieces"
    origin = Input("text", "real", f"Python sources of {what}, as {form}", licence)
    return Corpus(sides[0].location, sides[1].location, (origin,), files)


def _codec(
    config: Config, train: Table, cache: Location
) -> tuple[TextCodec, Mapping[str, Part]] | tuple[None, None]:
    """The tokenizer of the sources and its files; None for bytes."""
    if config.data.tokenizer == BPE:
        learnt = learn_pieces(train, config.model.vocab_size, cache)
        return learnt, codec_files(learnt)
    return _named(config) or (None, None)


def _named(config: Config) -> tuple[TextCodec, Mapping[str, Path]] | None:
    """The tokenizer of the folder that is named, if one is, and its files."""
    name, end_of_text = config.data.tokenizer, config.data.end_of_text
    if name is None or name == BPE:
        return None
    place = Location.of(name)
    try:
        folder = (
            load_bundle(place).folder
            if (place / MANIFEST_NAME).exists()
            else Path(name).expanduser()
        )
        found = HfCodec(folder)
    except BundleError as error:
        raise ConfigError(f"data.tokenizer: {error}") from error
    if found.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"data.tokenizer is {name}, which has {found.vocab_size:,} tokens, but "
            f"model.vocab_size is {config.model.vocab_size:,}"
        )
    if found.stop_tokens and end_of_text not in found.stop_tokens:
        theirs = ", ".join(map(str, sorted(found.stop_tokens)))
        raise ConfigError(
            f"data.end_of_text is {end_of_text}, but what ends a text in data.tokenizer, {name}, "
            f"is {theirs}"
        )
    files = {file: folder / file for file in FILES if (folder / file).is_file()}
    text = files[FILE].read_text(encoding="utf-8")
    return TextCodec(json_text=text, end_of_text=end_of_text, pad=None), files


def fingerprint(corpus: Corpus) -> str:
    """Stands for what was learnt from."""
    return Table.open(corpus.train).fingerprint


@dataclass(frozen=True)
class HeldOutRows:
    """Rows of the test side: every `stride`-th one as validation, or all the others as test."""

    location: Location
    length: int
    validation_rows: int
    is_validation: bool
    limit: int | None = None
    """Use only so many, spread evenly."""
    targets: str | None = None
    """Column that says which tokens are targets; None: all."""
    end_of_text: int = 0
    """Token between documents."""

    @property
    def epoch_size(self) -> int:
        """How many there are."""
        return len(self._rows)

    @property
    def fingerprint(self) -> str:
        """Stands for the text and for which rows these are."""
        kind = "validation" if self.is_validation else "test"
        return f"{self._packed.fingerprint}:{kind}:{self.validation_rows}:{self.epoch_size}"

    def samples(self, positions: Sequence[int]) -> list[Sample]:
        """The rows at these positions."""
        rows = self._rows
        return self._packed.samples([rows[position % len(rows)] for position in positions])

    @cached_property
    def _packed(self) -> PackedStream:
        return PackedStream(
            self.location,
            self.length,
            seed=0,
            end_of_text=self.end_of_text,
            pad=None,
            shuffle=False,
            targets=self.targets,
        )

    @cached_property
    def _rows(self) -> list[int]:
        total = self._packed.epoch_size
        stride = max(2, total // self.validation_rows)
        rows = list(range(0, total, stride)[: self.validation_rows])
        if not self.is_validation:
            validation = set(rows)
            rows = [row for row in range(total) if row not in validation]
        if self.limit is None or self.limit >= len(rows):
            return rows
        return [rows[index * len(rows) // self.limit] for index in range(self.limit)]

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}
