"""The structured kinds in one detector, behind the tests that let most messages pass untouched.

Nearly all messages of a support chat hold no digit, no `@` and no link. The marks of a text say so,
and the patterns run only where theirs occur.
"""

from __future__ import annotations

from jobs.support_templates.redaction.addresses import find_addresses
from jobs.support_templates.redaction.birth_dates import find_birth_dates
from jobs.support_templates.redaction.identifiers import find_identifiers
from jobs.support_templates.redaction.marks import Marks
from jobs.support_templates.redaction.online import find_online
from jobs.support_templates.redaction.phones import find_phones
from jobs.support_templates.redaction.spans import Span


def find_patterns(marks: Marks) -> list[Span]:
    """Every span of a structured kind, overlaps included."""
    spans = list(find_online(marks))
    if marks.digits:
        spans += find_addresses(marks)
        spans += find_birth_dates(marks)
    if marks.digits >= 3:
        spans += find_identifiers(marks)
    if marks.digits >= 7:
        spans += list(find_phones(marks, spans))
    return spans
