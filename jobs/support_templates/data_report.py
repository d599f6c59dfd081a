"""The part of a report that says what the conversations were: sides, languages, redactions."""

from __future__ import annotations

from collections import Counter

import pyarrow.compute as pc

from heliostat.data.table import Table
from heliostat.runs.report import Report
from jobs.support_templates.redaction.spans import KINDS


def write_data_section(report: Report, redacted: Table) -> None:
    """Count cases by side and by locale, and replaced spans by kind."""
    report.heading("Data")
    report.table(
        ("side", "cases"),
        _counted(redacted, "side"),
        caption="Cases of each side; a case is never on two.",
    )
    report.table(
        ("locale", "cases"),
        _counted(redacted, "locale"),
        caption="Cases by locale. All of them are used; the redactor's rules are made for en-US.",
    )
    counts = redaction_counts(redacted)
    report.table(
        ("kind", "replaced"),
        [(kind, counts[kind]) for kind in KINDS],
        caption=f"Spans of personal data that redactor {redacted.metadata['redactor_version']} "
        "replaced in all messages, by kind.",
    )


def redaction_counts(redacted: Table) -> Counter[str]:
    """Replaced spans by kind."""
    counts: Counter[str] = Counter()
    for chunk in redacted.column("redactions").chunks:
        for row in chunk.to_pylist():
            counts.update(dict(row))
    return counts


def _counted(redacted: Table, column: str) -> list[tuple[str, int]]:
    found = pc.value_counts(redacted.column(column)).to_pylist()
    return sorted(
        ((str(row["values"]), int(row["counts"])) for row in found), key=lambda row: (-row[1], row)
    )
