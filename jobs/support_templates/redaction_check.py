"""How well redaction did on the simulated chat, whose personal data are known."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pyarrow.parquet as pq

from heliostat.runs.run import Run
from heliostat.storage import Location
from jobs.support_templates.config import Config
from jobs.support_templates.data.schema import read_cases
from jobs.support_templates.pipeline import Conversations, simulated
from jobs.support_templates.redaction.measure import measure_recall
from jobs.support_templates.redaction.spans import Span

POOL = "labelled"
STRUCTURED_VALUES = frozenset(
    ("EMAIL", "PHONE", "CARD", "SSN", "IP", "URL", "IBAN", "HANDLE", "ACCOUNT", "DOB")
)


def redaction_figures(config: Config, run: Run, conversations: Conversations) -> dict[str, float]:
    """Recall by kind, share of clean messages flagged, and gold values left in the redacted table.

    A figure with the kind in its name is missing when no value of the kind occurs.
    """
    raw = simulated(config, run)
    gold: dict[tuple[str, int], list[Span]] = defaultdict(list)
    for row in _rows(raw / "gold_spans.parquet"):
        gold[row["case_id"], row["idx"]].append(Span(row["start"], row["end"], row["kind"]))
    texts, spans, values = [], [], set()
    for cases in read_cases(raw / f"cases-{POOL}.parquet"):
        for case in cases:
            for message in case.messages:
                found = gold.get((case.case_id, message.idx), [])
                texts.append(message.text)
                spans.append(found)
                values |= {
                    message.text[span.start : span.end]
                    for span in found
                    if span.kind in STRUCTURED_VALUES
                }
    measured = measure_recall(texts, spans)
    recalls = {f"recall_{kind}": found.recall for kind, found in measured.by_kind.items()}
    return {
        **recalls,
        "clean_flagged_share": measured.false_flag_share,
        "verbatim_values": float(_verbatim(conversations, values)),
    }


def _verbatim(conversations: Conversations, values: set[str]) -> int:
    """How many of the values still stand in the redacted messages."""
    table = conversations.redacted
    messages = table.column("messages")
    everything = "\n".join(
        message["text"] for chunk in messages.chunks for row in chunk.to_pylist() for message in row
    )
    return sum(value in everything for value in values)


def _rows(place: Location) -> list[dict[str, Any]]:
    with place.open_input() as source:
        return list(pq.read_table(source).to_pylist())
