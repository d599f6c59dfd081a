"""Redaction of personal data: every message passes through here before anything else sees it.

The package finds personal data by layered rules (shapes, checksums, a name lexicon, cue phrases)
and replaces each find by a placeholder such as `<NAME>`. It never stores, returns or logs a value.
It is not a general de-identification tool: the rules are for English chat of a payments company.
"""

from __future__ import annotations

from jobs.support_templates.redaction.measure import Measurement, measure_recall
from jobs.support_templates.redaction.redactor import (
    REDACTOR_VERSION,
    Redactor,
    build_redactor,
)
from jobs.support_templates.redaction.spans import KINDS, Redaction, Span

__all__ = [
    "KINDS",
    "REDACTOR_VERSION",
    "Measurement",
    "Redaction",
    "Redactor",
    "Span",
    "build_redactor",
    "measure_recall",
]
