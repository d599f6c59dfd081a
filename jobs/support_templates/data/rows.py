"""The rows of the raw tables as plain values: a case, its messages, a reply template.

Nothing here reads, writes or checks; `schema` does. The module loads no library.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Role = Literal["customer", "system", "advocate"]
ROLES: tuple[Role, ...] = ("customer", "system", "advocate")

Status = Literal["active", "retired"]
STATUSES: tuple[Status, ...] = ("active", "retired")

UNKNOWN_LOCALE = "und"
"""The BCP-47 tag of an undetermined language."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a case."""

    idx: int
    """Position in the case; strictly increasing."""
    role: Role
    """Who wrote it."""
    text: str
    """What was written; raw, not redacted."""
    sent_at: datetime | None = None
    """When it was sent, in UTC."""
    template_id: str | None = None
    """The template that the advocate sent; None for free text and other roles."""
    advocate_id: str | None = None
    """The advocate who sent it."""


@dataclass(frozen=True, slots=True)
class Case:
    """One support case from its first message to its last."""

    case_id: str
    """Unique in the whole table."""
    started_at: datetime
    """When the first message was sent, in UTC."""
    locale: str
    """BCP-47 tag such as en-US."""
    messages: tuple[Message, ...]
    """The messages in order of `idx`."""


@dataclass(frozen=True, slots=True)
class Template:
    """One reply that advocates can send with a click."""

    template_id: str
    """Unique in the table; the class that the model predicts."""
    title: str
    """What advocates see in lists."""
    body: str
    """What customers receive."""
    status: Status = "active"
    """Whether advocates can still choose it."""
    introduced_at: datetime | None = None
    """First day of use, in UTC."""
    retired_at: datetime | None = None
    """End of use, in UTC; None while there is no end."""
    version: int = 1
    """Counts the revisions of the body."""
