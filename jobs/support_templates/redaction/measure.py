"""Measuring a redactor against gold spans: recall by kind and the share of false flags.

A gold span counts as found when redacted spans cover every character of it, whatever their kind:
the question is whether personal data is gone, not what the placeholder says. A clean message, one
without a gold span, counts as falsely flagged when anything in it was redacted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from heliostat.errors import DataError
from jobs.support_templates.redaction.redactor import Redactor, build_redactor
from jobs.support_templates.redaction.spans import KINDS, Span


@dataclass(frozen=True)
class KindRecall:
    """Share of the gold spans of one kind that were fully covered, and how many there were."""

    recall: float
    n: int


@dataclass(frozen=True)
class Measurement:
    """Recall by kind (kinds without gold spans are absent) and false flags on clean messages."""

    by_kind: dict[str, KindRecall]
    false_flag_share: float
    clean_messages: int


def measure_recall(
    messages: Sequence[str],
    gold_spans: Sequence[Sequence[Span]],
    redactor: Redactor | None = None,
) -> Measurement:
    """Redact `messages` and compare with the gold spans of each.

    Args:
        messages: raw texts.
        gold_spans: for each message its gold spans, none for a clean message.
        redactor: what to measure; None measures the rules without a second layer.

    Raises:
        DataError: if the lengths differ or a gold span does not lie in its message.
    """
    if len(messages) != len(gold_spans):
        raise DataError(
            f"measure_recall got {len(messages)} messages and gold spans for {len(gold_spans)}; "
            "give one list of spans, possibly empty, for each message"
        )
    subject = redactor if redactor is not None else build_redactor(presidio=False)
    seen: Counter[str] = Counter()
    covered: Counter[str] = Counter()
    clean = flagged = 0
    for number, (text, gold) in enumerate(zip(messages, gold_spans, strict=True)):
        spans = subject.redact(text).spans
        if not gold:
            clean += 1
            flagged += bool(spans)
        for span in gold:
            _check(span, text, number)
            seen[span.kind] += 1
            covered[span.kind] += is_covered(span, spans)
    by_kind = {
        kind: KindRecall(covered[kind] / seen[kind], seen[kind]) for kind in KINDS if seen[kind]
    }
    return Measurement(by_kind, flagged / clean if clean else 0.0, clean)


def is_covered(gold: Span, spans: Sequence[Span]) -> bool:
    """Whether sorted, disjoint `spans` leave no character of `gold` uncovered."""
    reached = gold.start
    for span in spans:
        if span.start > reached:
            break
        reached = max(reached, span.end)
    return reached >= gold.end


def _check(span: Span, text: str, number: int) -> None:
    """Refuse a gold span that cannot be one of `text`."""
    if span.kind not in KINDS or not 0 <= span.start < span.end <= len(text):
        raise DataError(
            f"gold span {span.start}:{span.end} of kind '{span.kind}' in message {number} is not "
            f"inside the message of {len(text)} characters or not of a known kind"
        )
