"""Small tables of token documents and labelled contexts, with random tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from heliostat.data.table import TableWriter
from heliostat.storage import Location
from jobs.support_templates.pipeline import LABELLED_SCHEMA
from jobs.support_templates.preparation import DOCUMENT_SCHEMA

END_OF_TEXT, PAD, FIRST = 0, 1, 2
VOCABULARY = 60


def random_lists(lengths: Sequence[int], seed: int) -> list[list[int]]:
    """Lists of ordinary tokens with these lengths."""
    generator = np.random.default_rng(seed)
    return [generator.integers(FIRST, VOCABULARY, length).tolist() for length in lengths]


def write_documents(
    location: Location, lengths: Sequence[int], seed: int, metadata: Mapping[str, str]
) -> Location:
    """A table of documents with these lengths."""
    with TableWriter(location, DOCUMENT_SCHEMA, metadata) as writer:
        writer.write(
            pa.record_batch(
                {
                    "id": pa.array([f"case-{n}" for n in range(len(lengths))]),
                    "tokens": pa.array(random_lists(lengths, seed), DOCUMENT_SCHEMA.field(1).type),
                },
                schema=DOCUMENT_SCHEMA,
            )
        )
    return location


def write_contexts(
    location: Location, lengths: Sequence[int], labels: Sequence[int], seed: int
) -> Location:
    """A table of labelled contexts; the newest token tells the label, so it can be learnt."""
    contexts = [
        [*tokens[:-1], FIRST + max(label, 0)]
        for tokens, label in zip(random_lists(lengths, seed), labels, strict=True)
    ]
    with TableWriter(location, LABELLED_SCHEMA, {}) as writer:
        writer.write(
            pa.record_batch(
                {
                    "id": pa.array([f"case-{n}#1" for n in range(len(lengths))]),
                    "tokens": pa.array(contexts, LABELLED_SCHEMA.field("tokens").type),
                    "label": pa.array(labels, pa.int32()),
                    "template_id": pa.array([f"template-{label}" for label in labels]),
                    "depth": pa.array([1] * len(lengths), pa.int32()),
                },
                schema=LABELLED_SCHEMA,
            )
        )
    return location
