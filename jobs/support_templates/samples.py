"""The Arrow table of stage-2 samples, and the checks that guard it.

One row is one labelled context. The label is stored as a template id, not as an index: indices
belong to a label map, and a label map belongs to a classifier. Token ids are 16-bit, which holds
every vocabulary below 65,536 and halves the storage.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

import pyarrow as pa
import pyarrow.compute as pc

from heliostat.errors import DataError
from jobs.support_templates.contexts import Sample

SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("case_id", pa.string(), nullable=False),
        pa.field("side", pa.string(), nullable=False),
        pa.field("template_id", pa.string(), nullable=False),
        pa.field("tokens", pa.list_(pa.field("item", pa.uint16(), nullable=False)), nullable=False),
        pa.field("depth", pa.int32(), nullable=False),
        pa.field("started_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("cut_inside", pa.bool_(), nullable=False),
        pa.field("redactor_version", pa.string(), nullable=False),
    ]
)

_LARGEST_TOKEN = 2**16 - 1


def sample_table(samples: Iterable[Sample]) -> pa.Table:
    """Samples as rows of `SAMPLE_SCHEMA`."""
    rows = list(samples)
    for row in rows:
        if max(row.tokens) > _LARGEST_TOKEN:
            raise DataError(
                f"sample {row.sample_id!r} holds token id {max(row.tokens)}: the table stores "
                f"16-bit tokens, so the vocabulary must stay below {_LARGEST_TOKEN + 1}"
            )
    columns = {
        name: pa.array([getattr(row, name) for row in rows], type=SAMPLE_SCHEMA.field(name).type)
        for name in (field.name for field in fields(Sample))
    }
    return pa.table(columns, schema=SAMPLE_SCHEMA)


def check_redacted(table: pa.Table) -> str:
    """The redactor version that all rows share; a table without exactly one is refused."""
    if "redactor_version" not in table.schema.names:
        raise DataError("the table has no column redactor_version: its texts may not be redacted")
    versions = sorted(str(v) for v in pc.unique(table["redactor_version"]).to_pylist())
    if len(versions) != 1 or versions[0] in ("", "None"):
        raise DataError(
            f"the table's redactor versions are {versions}: expected exactly one, "
            f"and on every row; prepare the data again"
        )
    return versions[0]
