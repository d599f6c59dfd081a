"""Packing: the token documents of a table as rows of exactly `seq_len` tokens, nothing dropped.

In each epoch the documents are shuffled, each is followed by the end-of-text token, all are laid
end to end and cut every `seq_len` tokens; a document that does not fit goes on in the next row, and
the last row is padded. With D_0, D_1, ... the documents in the epoch's order and E_k the number of
tokens up to the end of D_k, row r holds the tokens [r * seq_len, (r + 1) * seq_len); its first
document is the first with E_k > r * seq_len. That one is found by bisection in the sums over groups
of documents and then within one group, so any row is made directly and no state is carried over.

Targets are not shifted here, and no mask is built: that is the model's part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from heliostat.data.cache import Recent
from heliostat.data.order import BLOCK_ROWS, GROUP_BLOCKS, Indices, Order
from heliostat.data.sample import Sample
from heliostat.data.source import Require, head_rows, kept_order, open_source, stream_fingerprint
from heliostat.data.table import Table
from heliostat.errors import DataError
from heliostat.storage import Location

IGNORED = -100
"""The label of a token that is no target."""
TOKENS = "tokens"
_EPOCHS_KEPT = 4
_GROUPS_KEPT = 8


class _Piece(NamedTuple):
    """Part of one document, end-of-text included, in one row."""

    document: int
    skipped: int
    """Tokens of the document that lie in earlier rows."""
    size: int
    is_last: bool
    """Whether the last of the `size` tokens is the end-of-text token."""


@dataclass(frozen=True)
class PackedStream:
    """Rows of `seq_len` tokens from a table with a list column `tokens`, one document in each row.

    A sample has `id` (the number of the row in its epoch), `input_ids`, `labels` (the same tokens,
    not shifted, and -100 at padding), `document_ids` (0, 1, ... within the row, -1 at padding) and
    `n_real`, the number of tokens that are not padding.
    """

    location: Location
    seq_len: int
    seed: int
    end_of_text: int
    pad: int | None
    """Must not occur in the text. None: a model without one; the last row ends in end-of-text."""
    shuffle: bool = True
    head: int | None = None
    """Use the first so many documents of the table only."""
    require: Require = field(default_factory=dict, hash=False)
    """Metadata that the table must have, for example the version of the redactor."""

    def __post_init__(self) -> None:
        if self.seq_len < 1:
            raise DataError(f"seq_len must be at least 1, not {self.seq_len}")
        if self.pad == self.end_of_text:
            raise DataError(
                f"the padding token and the end-of-text token are both {self.pad}; choose another"
                " padding token, or none"
            )

    @cached_property
    def table(self) -> Table:
        """The table behind the stream."""
        return open_source(self.location, self.require)

    @cached_property
    def epoch_size(self) -> int:
        """Rows in one epoch."""
        return -(-self.tokens_per_epoch // self.seq_len)

    @cached_property
    def tokens_per_epoch(self) -> int:
        """Tokens in one epoch, with an end-of-text for every document and without padding."""
        return int(self._block_tokens.sum())

    @cached_property
    def fingerprint(self) -> str:
        """Stands for the documents, their order and how they are cut."""
        layout = {"seq_len": self.seq_len, "end_of_text": self.end_of_text, "pad": self.pad}
        seed = self.seed if self.shuffle else None
        rows = len(self._lengths)
        return stream_fingerprint(self.table, rows, seed, {"layout": "packed", **layout})

    def samples(self, positions: Sequence[int]) -> list[Sample]:
        """The packed rows at these positions."""
        rows = [divmod(position, self.epoch_size) for position in positions]
        pieces = [self._pieces(epoch, row) for epoch, row in rows]
        documents = np.array([piece.document for row in pieces for piece in row], dtype=np.int64)
        blocks, offsets = self.table.locate(documents)
        needed = np.unique(blocks).tolist()
        tokens = dict(zip(needed, map(_tokens, self.table.read_blocks(needed)), strict=True))
        places = zip(blocks.tolist(), offsets.tolist(), strict=True)
        texts = (tokens[block].list_at(offset) for block, offset in places)
        return [
            self._sample(row, found, texts) for (_, row), found in zip(rows, pieces, strict=True)
        ]

    @cached_property
    def _lengths(self) -> npt.NDArray[np.uint32]:
        return self.table.lengths(TOKENS)[: head_rows(self.table, self.head)]

    @cached_property
    def _block_tokens(self) -> Indices:
        """Tokens of every block of the order, end-of-text tokens included."""
        starts = np.arange(0, len(self._lengths), BLOCK_ROWS)
        documents = np.diff(np.append(starts, len(self._lengths)))
        return np.add.reduceat(self._lengths, starts, dtype=np.int64) + documents

    @cached_property
    def _epochs(self) -> Recent[int, tuple[Order, Indices]]:
        return Recent(_EPOCHS_KEPT)

    @cached_property
    def _groups(self) -> Recent[tuple[int, int], tuple[Indices, Indices]]:
        return Recent(_GROUPS_KEPT)

    def _make_epoch(self, epoch: int) -> tuple[Order, Indices]:
        """The order of the documents and the token at which each of its groups starts."""
        order = kept_order(len(self._lengths), self.seed, epoch, self.shuffle)
        tokens = self._block_tokens[order.blocks]
        groups = np.add.reduceat(tokens, np.arange(0, len(tokens), GROUP_BLOCKS))
        return order, np.concatenate(([0], np.cumsum(groups)))

    def _make_group(self, key: tuple[int, int]) -> tuple[Indices, Indices]:
        """The documents of a group in their order, and the token of the group where each ends."""
        epoch, number = key
        order, _ = self._epochs.get(epoch, self._make_epoch)
        documents = order.group(number)
        return documents, np.cumsum(self._lengths[documents].astype(np.int64) + 1)

    def _pieces(self, epoch: int, row: int) -> list[_Piece]:
        """The pieces of documents that make a row."""
        _, starts = self._epochs.get(epoch, self._make_epoch)
        begin = row * self.seq_len
        end = min(begin + self.seq_len, int(starts[-1]))
        pieces: list[_Piece] = []
        while begin < end:
            number = int(np.searchsorted(starts, begin, side="right")) - 1
            stop = min(end, int(starts[number + 1]))
            documents, ends = self._groups.get((epoch, number), self._make_group)
            base = int(starts[number])
            pieces += _cut(documents, ends, begin - base, stop - base)
            begin = stop
        return pieces

    def _sample(
        self, row: int, pieces: Sequence[_Piece], texts: Iterator[npt.NDArray[np.integer]]
    ) -> Sample:
        filler = self.end_of_text if self.pad is None else self.pad
        input_ids = np.full(self.seq_len, filler, dtype=np.int64)
        document_ids = np.full(self.seq_len, -1, dtype=np.int32)
        at = 0
        for number, piece in enumerate(pieces):
            words = piece.size - piece.is_last
            text = next(texts)
            input_ids[at : at + words] = text[piece.skipped : piece.skipped + words]
            document_ids[at : at + piece.size] = number
            at += piece.size
            if piece.is_last:
                input_ids[at - 1] = self.end_of_text
        if self.pad is not None and (input_ids[:at] == self.pad).any():
            raise DataError(
                f"{self.location}: the padding token {self.pad} occurs in the text (epoch row"
                f" {row}); choose a padding token that the tokenizer never gives"
            )
        labels = input_ids.copy()
        labels[at:] = IGNORED
        return {
            "id": row,
            "input_ids": input_ids,
            "labels": labels,
            "document_ids": document_ids,
            "n_real": at,
        }

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class _Lists(NamedTuple):
    """The lists of one block without a copy."""

    offsets: npt.NDArray[np.integer]
    values: npt.NDArray[np.integer]

    def list_at(self, index: int) -> npt.NDArray[np.integer]:
        return self.values[self.offsets[index] : self.offsets[index + 1]]


def _tokens(block: pa.RecordBatch) -> _Lists:
    column = block.column(TOKENS)
    return _Lists(column.offsets.to_numpy(), column.values.to_numpy())


def _cut(documents: Indices, ends: Indices, begin: int, stop: int) -> list[_Piece]:
    """The pieces of a group's documents that lie in the tokens [begin, stop) of the group."""
    first = int(np.searchsorted(ends, begin, side="right"))
    last = int(np.searchsorted(ends, stop, side="left"))
    starts = ends[first : last + 1].tolist()
    edges = [int(ends[first - 1]) if first else 0, *starts]
    return [
        _Piece(
            document=document,
            skipped=max(0, begin - start),
            size=min(end, stop) - max(start, begin),
            is_last=end <= stop,
        )
        for document, start, end in zip(
            documents[first : last + 1].tolist(), edges[:-1], edges[1:], strict=True
        )
    ]
