"""Raw cases to redacted ones, a batch of columns at a time.

A chat repeats itself: templates and short answers recur, and what lies around a redacted value
recurs more often still. So each distinct message of a chunk is redacted once, and what the redactor
has searched in one message it does not search again in another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from heliostat.data.chunks import Outcome
from jobs.support_templates.data.case_columns import CaseColumns
from jobs.support_templates.data.chunks import CaseChunk, read_chunk
from jobs.support_templates.redaction.redactor import Redactor, build_redactor
from jobs.support_templates.redaction.spans import KINDS, Redaction
from jobs.support_templates.split import SideRule

REDACTIONS = pa.map_(pa.string(), pa.field("value", pa.int32(), nullable=False))
"""How many spans of each kind were replaced; never what stood there."""
REDACTED_SCHEMA = pa.schema(
    [
        pa.field("case_id", pa.string(), nullable=False),
        pa.field("side", pa.string(), nullable=False),
        pa.field("started_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("locale", pa.string(), nullable=False),
        pa.field(
            "messages",
            pa.list_(
                pa.struct(
                    [
                        pa.field("role", pa.string(), nullable=False),
                        pa.field("text", pa.string(), nullable=False),
                        pa.field("template_id", pa.string()),
                    ]
                )
            ),
            nullable=False,
        ),
        pa.field("redactor_version", pa.string(), nullable=False),
        pa.field("redactions", REDACTIONS, nullable=False),
    ]
)
REMEMBERED = 100_000
"""Messages, and pieces of messages, that are remembered while a chunk is redacted."""

_SORTED_KINDS = sorted(KINDS)

Counts = npt.NDArray[np.int32]


@dataclass(frozen=True)
class RedactCases:
    """Raw cases to rows of `REDACTED_SCHEMA`."""

    presidio: bool
    templates: frozenset[str]

    @cached_property
    def redactor(self) -> Redactor:
        """Built once a worker."""
        return build_redactor(self.presidio)

    def __call__(self, chunk: tuple[CaseChunk, SideRule]) -> Iterator[Outcome]:
        place, rule = chunk
        redactor = self.redactor.remembering(REMEMBERED)
        for cases in read_chunk(place, self.templates):
            messages = cases.text.dictionary_encode()
            found = [redactor.redact(text) for text in messages.dictionary.to_pylist()]
            which = messages.indices.to_numpy()
            yield pa.record_batch(
                {
                    "case_id": cases.case_id,
                    "side": [rule.side(case_id) for case_id in cases.case_id.to_pylist()],
                    "started_at": cases.started_at,
                    "locale": cases.locale,
                    "messages": _message_lists(cases, found, messages.indices),
                    "redactor_version": pa.repeat(redactor.version, len(cases.case_id)),
                    "redactions": _count_maps(_counts(found)[which], cases.ends),
                },
                schema=REDACTED_SCHEMA,
            )

    def __getstate__(self) -> dict[str, object]:
        return {"presidio": self.presidio, "templates": self.templates}


def _message_lists(
    cases: CaseColumns, found: Sequence[Redaction], which: pa.IntegerArray
) -> pa.ListArray:
    """The messages of each case with their redacted texts."""
    lists = REDACTED_SCHEMA.field("messages").type
    texts = pa.array([redaction.text for redaction in found], pa.string()).take(which)
    structs = pa.StructArray.from_arrays(
        [cases.role, texts, cases.template_id], fields=list(lists.value_type)
    )
    return pa.ListArray.from_arrays(pa.array(cases.ends, pa.int32()), structs, type=lists)


def _counts(found: Sequence[Redaction]) -> Counts:
    """[redactions, kinds]: how many spans of each kind, the kinds in alphabetical order."""
    counts = np.zeros((len(found), len(_SORTED_KINDS)), np.int32)
    column = {kind: place for place, kind in enumerate(_SORTED_KINDS)}
    for row, redaction in enumerate(found):
        for kind, count in redaction.counts.items():
            counts[row, column[kind]] = count
    return counts


def _count_maps(counts: Counts, ends: npt.NDArray[np.int64]) -> pa.MapArray:
    """The counts of each case, added over its messages, as maps without zeros."""
    running = np.concatenate((np.zeros((1, counts.shape[1]), np.int32), np.cumsum(counts, axis=0)))
    by_case = running[ends[1:]] - running[ends[:-1]]
    rows, columns = np.nonzero(by_case)
    offsets = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=len(by_case)))))
    return pa.MapArray.from_arrays(
        pa.array(offsets, pa.int32()),
        pa.array(_SORTED_KINDS, pa.string()).take(pa.array(columns)),
        pa.array(by_case[rows, columns], pa.int32()),
        type=REDACTIONS,
    )
