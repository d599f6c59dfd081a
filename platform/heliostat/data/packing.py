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

from collections.abc import Sequence
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


class _Pieces(NamedTuple):
    """Parts of documents, end-of-text included, that make some rows; one array a field."""

    row: Indices
    """Which of the rows that are wanted."""
    place: Indices
    """Where the part begins in its row."""
    document: Indices
    skipped: Indices
    """Tokens of the document that lie in earlier rows."""
    size: Indices
    is_last: npt.NDArray[np.bool_]
    """Whether the last of the `size` tokens is the end-of-text token."""

    def sorted(self) -> _Pieces:
        """The parts in the order of rows and places."""
        order = np.lexsort((self.place, self.row))
        return _Pieces(
            row=self.row[order],
            place=self.place[order],
            document=self.document[order],
            skipped=self.skipped[order],
            size=self.size[order],
            is_last=self.is_last[order],
        )


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
    targets: str | None = None
    """List column, as long as `tokens`, of zeros and others: the label of a token with zero is
    -100. The end-of-text of a document is a target where its last token is one. None: all are."""

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
        """The table behind the stream; a `DataError` where it lacks the column `targets`."""
        table = open_source(self.location, self.require)
        if self.targets is not None:
            if self.targets not in table.schema.names:
                raise DataError(
                    f"{self.location} has no column {self.targets}; it has "
                    f"{', '.join(table.schema.names)}"
                )
            if (table.lengths(TOKENS) != table.lengths(self.targets)).any():
                raise DataError(
                    f"{self.location}: {TOKENS} and {self.targets} are not equally long everywhere"
                )
        return table

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
        layout: dict[str, int | str | None] = {
            "seq_len": self.seq_len,
            "end_of_text": self.end_of_text,
            "pad": self.pad,
        }
        if self.targets is not None:
            layout["targets"] = self.targets
        seed = self.seed if self.shuffle else None
        rows = len(self._lengths)
        return stream_fingerprint(self.table, rows, seed, {"layout": "packed", **layout})

    def samples(self, positions: Sequence[int]) -> list[Sample]:
        """The packed rows at these positions; what is made together shares its memory."""
        epochs, rows = np.divmod(np.asarray(positions, dtype=np.int64), self.epoch_size)
        pieces = self._pieces(epochs, rows)
        shape = (len(rows), self.seq_len)
        filler = self.end_of_text if self.pad is None else self.pad
        input_ids = np.full(shape, filler, dtype=np.int64)
        document_ids = np.full(shape, -1, dtype=np.int32)
        self._copy(TOKENS, input_ids.ravel(), pieces)
        begins = pieces.row * self.seq_len + pieces.place
        ends = begins + pieces.size
        input_ids.ravel()[ends[pieces.is_last] - 1] = self.end_of_text
        # Padding only ends a row, so the places before it are in the order of the pieces.
        first = np.searchsorted(pieces.row, pieces.row)
        is_real = np.arange(self.seq_len) < np.bincount(
            pieces.row, pieces.size, minlength=len(rows)
        ).astype(np.int64).reshape(-1, 1)
        document_ids[is_real] = np.repeat(np.arange(len(first)) - first, pieces.size)
        self._check_padding(rows, input_ids, is_real)
        is_target = is_real & self._targets(pieces, shape)
        labels = np.where(is_target, input_ids, IGNORED)
        real = is_real.sum(axis=1)
        return [
            {
                "id": int(row),
                "input_ids": input_ids[at],
                "labels": labels[at],
                "document_ids": document_ids[at],
                "n_real": int(real[at]),
            }
            for at, row in enumerate(rows)
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

    def _pieces(self, epochs: Indices, rows: Indices) -> _Pieces:
        """The pieces of documents that make the rows."""
        found: list[_Pieces] = []
        for epoch in np.unique(epochs).tolist():
            _, starts = self._epochs.get(epoch, self._make_epoch)
            wanted = np.flatnonzero(epochs == epoch)
            begin = rows[wanted] * self.seq_len
            stop = np.minimum(begin + self.seq_len, starts[-1])
            first = np.searchsorted(starts, begin, side="right") - 1
            last = np.searchsorted(starts, stop, side="left") - 1
            spans = zip(first.tolist(), last.tolist(), strict=True)
            for group in sorted({number for a, b in spans for number in range(a, b + 1)}):
                documents, ends = self._groups.get((epoch, group), self._make_group)
                base = int(starts[group])
                here = (first <= group) & (group <= last)
                found.append(
                    _cut(documents, ends, wanted[here], begin[here] - base, stop[here] - base)
                )
        if len(found) == 1:
            return found[0]
        return _Pieces(*map(np.concatenate, zip(*found, strict=True))).sorted()

    def _targets(self, pieces: _Pieces, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Which tokens of the rows are targets; padding is neither."""
        if self.targets is None:
            return np.ones(shape, dtype=np.bool_)
        marks = np.zeros(shape)
        flat = marks.ravel()
        self._copy(self.targets, flat, pieces)
        ends = (pieces.row * self.seq_len + pieces.place + pieces.size)[pieces.is_last] - 1
        flat[ends] = self._last_marks(pieces.document[pieces.is_last])
        found: npt.NDArray[np.bool_] = marks != 0
        return found

    def _last_marks(self, documents: Indices) -> npt.NDArray[np.float64]:
        """The mark of the last token of each document, which may lie in the row before."""
        assert self.targets is not None
        blocks, offsets = self.table.locate(documents)
        needed = np.unique(blocks)
        lists = [_lists(one, self.targets) for one in self.table.read_blocks(needed.tolist())]
        marks = np.zeros(len(documents))
        for at, (kept, offset) in enumerate(
            zip(np.searchsorted(needed, blocks).tolist(), offsets.tolist(), strict=True)
        ):
            block = lists[kept]
            begin, end = block.offsets[offset], block.offsets[offset + 1]
            marks[at] = block.values[end - 1] if end > begin else 0
        return marks

    def _copy(self, column: str, flat: npt.NDArray[np.int64 | np.float64], pieces: _Pieces) -> None:
        """Copy a column of the documents into the rows, laid end to end in `flat`."""
        blocks, offsets = self.table.locate(pieces.document)
        needed = np.unique(blocks)
        lists = [_lists(block, column) for block in self.table.read_blocks(needed.tolist())]
        words = pieces.size - pieces.is_last
        begins = pieces.row * self.seq_len + pieces.place
        for kept, offset, skipped, size, at in zip(
            np.searchsorted(needed, blocks).tolist(),
            offsets.tolist(),
            pieces.skipped.tolist(),
            words.tolist(),
            begins.tolist(),
            strict=True,
        ):
            block = lists[kept]
            source = int(block.offsets[offset]) + skipped
            flat[at : at + size] = block.values[source : source + size]

    def _check_padding(
        self, rows: Indices, input_ids: npt.NDArray[np.int64], is_real: npt.NDArray[np.bool_]
    ) -> None:
        if self.pad is None:
            return
        bad = ((input_ids == self.pad) & is_real).any(axis=1)
        if bad.any():
            raise DataError(
                f"{self.location}: the padding token {self.pad} occurs in the text (epoch row"
                f" {int(rows[bad][0])}); choose a padding token that the tokenizer never gives"
            )

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class _Lists(NamedTuple):
    """The lists of one block without a copy."""

    offsets: npt.NDArray[np.integer]
    values: npt.NDArray[np.integer | np.floating | np.bool_]


def _lists(block: pa.RecordBatch, name: str) -> _Lists:
    column = block.column(name)
    values = column.values
    # Booleans are packed into bits, which NumPy cannot look at.
    copied = pa.types.is_boolean(values.type)
    return _Lists(column.offsets.to_numpy(), values.to_numpy(zero_copy_only=not copied))


def _cut(
    documents: Indices, ends: Indices, rows: Indices, begin: Indices, stop: Indices
) -> _Pieces:
    """The pieces of a group's documents that lie in the tokens [begin, stop) of the group.

    Args:
        documents: the documents of the group, in their order.
        ends: the token of the group where each of them ends.
        rows: [rows], which of the rows that are wanted each range belongs to; it rises.
        begin: [rows], negative where the row begins in the group before.
        stop: [rows], beyond the group where the row goes on in the next one.
    """
    inside, outside = np.maximum(begin, 0), np.minimum(stop, ends[-1])
    first = np.searchsorted(ends, inside, side="right")
    counts = np.searchsorted(ends, outside, side="left") - first + 1
    which = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    index = first[which] + within
    end = ends[index]
    start = np.where(index > 0, ends[index - 1], 0)
    piece_begin = np.maximum(start, inside[which])
    return _Pieces(
        row=rows[which],
        place=piece_begin - begin[which],
        document=documents[index],
        skipped=piece_begin - start,
        size=np.minimum(end, outside[which]) - piece_begin,
        is_last=end <= outside[which],
    )
