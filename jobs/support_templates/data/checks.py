"""From Parquet batches to checked rows: the rules that a table of cases or templates must keep.

Every refusal is one sentence with the file, the row, the case and the message, what was found and
what was expected. It never repeats the text of a message.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from datetime import datetime
from difflib import get_close_matches
from itertools import islice
from typing import cast

import pyarrow as pa

from heliostat.errors import DataError
from jobs.support_templates.data.columns import Column, read_columns
from jobs.support_templates.data.rows import (
    ROLES,
    STATUSES,
    UNKNOWN_LOCALE,
    Case,
    Message,
    Status,
    Template,
)

_TIMESTAMP = pa.timestamp("us", tz="UTC")

CASE_COLUMNS = (
    Column("case_id", pa.string()),
    Column("started_at", _TIMESTAMP, "the time of the first message"),
    Column("locale", pa.string(), f"{UNKNOWN_LOCALE}, undetermined"),
    Column("messages.idx", pa.int32()),
    Column("messages.role", pa.string()),
    Column("messages.text", pa.string()),
    Column("messages.sent_at", _TIMESTAMP, "no time"),
    Column("messages.template_id", pa.string(), "no template, so these cases carry no labels"),
    Column("messages.advocate_id", pa.string(), "no advocate"),
)
TEMPLATE_COLUMNS = (
    Column("template_id", pa.string()),
    Column("title", pa.string(), "the template_id"),
    Column("body", pa.string()),
    Column("status", pa.string(), "active"),
    Column("introduced_at", _TIMESTAMP, "no time"),
    Column("retired_at", _TIMESTAMP, "no time"),
    Column("version", pa.int32(), "1"),
)

_MESSAGE_FIELDS = ("idx", "role", "text", "sent_at", "template_id", "advocate_id")


def cases_from_batch(
    batch: pa.RecordBatch, file: str, first_row: int, templates: Set[str] | None
) -> list[Case]:
    """The rows of one batch as cases, each checked by itself.

    Args:
        batch: rows whose schema passed `check_schema` with `CASE_COLUMNS`.
        file: the name of their file, for errors.
        first_row: the row number in the file of the batch's first row, for errors.
        templates: the ids of the `templates` table, or None to accept any.
    """
    columns = read_columns(batch, CASE_COLUMNS, file)
    messages = zip(*(columns[f"messages.{field}"] for field in _MESSAGE_FIELDS), strict=True)
    heads = zip(
        *(columns[name] for name in ("case_id", "started_at", "locale", "messages")), strict=True
    )
    cases: list[Case] = []
    for row, (case_id, started_at, locale, size) in enumerate(heads, start=first_row):
        if not case_id:
            raise DataError(f"{file}, row {row}: case_id is empty or null; expected a unique id")
        where = f"{file}, row {row}, case {case_id!r}"
        if size is None:
            raise DataError(f"{where}: messages is null; expected a list of messages")
        own = tuple(Message(*values) for values in islice(messages, cast(int, size)))
        _check_messages(own, where, templates)
        start = started_at or (own[0].sent_at if own else None)
        if start is None:
            raise DataError(
                f"{where}: started_at and the first sent_at are null; expected one of them"
            )
        cases.append(Case(str(case_id), cast(datetime, start), str(locale or UNKNOWN_LOCALE), own))
    return cases


def templates_from_batch(batch: pa.RecordBatch, file: str, first_row: int) -> list[Template]:
    """The rows of one batch as templates, each checked by itself; as `cases_from_batch`."""
    columns = read_columns(batch, TEMPLATE_COLUMNS, file)
    rows = zip(*(columns[column.name] for column in TEMPLATE_COLUMNS), strict=True)
    templates: list[Template] = []
    for row, (template_id, title, body, status, introduced, retired, version) in enumerate(
        rows, start=first_row
    ):
        where = f"{file}, row {row}"
        if not template_id:
            raise DataError(f"{where}: template_id is empty or null; expected a unique id")
        if not body:
            raise DataError(f"{where}, template {template_id!r}: body is empty; expected its text")
        if status is not None and status not in STATUSES:
            raise DataError(
                f"{where}, template {template_id!r}: status is {status!r}; "
                f"expected {_nearest(str(status), STATUSES)}"
            )
        templates.append(
            Template(
                template_id=str(template_id),
                title=str(title or template_id),
                body=str(body),
                status=cast(Status, status or "active"),
                introduced_at=cast(datetime | None, introduced),
                retired_at=cast(datetime | None, retired),
                version=1 if version is None else cast(int, version),
            )
        )
    return templates


def _check_messages(messages: tuple[Message, ...], where: str, templates: Set[str] | None) -> None:
    previous: int | None = None
    for position, message in enumerate(messages, start=1):
        place = f"{where}, message {position} of {len(messages)}"
        for name in ("idx", "role", "text"):
            if getattr(message, name) is None:
                raise DataError(f"{place}: {name} is null; expected a value")
        if previous is not None and message.idx <= previous:
            fault = "repeats" if message.idx == previous else "comes after"
            raise DataError(
                f"{place}: idx {message.idx} {fault} idx {previous}; "
                "expected messages in the order of strictly increasing idx"
            )
        previous = message.idx
        if message.role not in ROLES:
            raise DataError(
                f"{place}: role is {message.role!r}; expected {_nearest(message.role, ROLES)}"
            )
        if message.template_id is not None:
            _check_template(message, message.template_id, place, templates)


def _check_template(
    message: Message, template_id: str, place: str, templates: Set[str] | None
) -> None:
    if message.role != "advocate":
        raise DataError(
            f"{place}: template_id is {template_id!r} on a {message.role} message; "
            "expected null, since only advocates send templates"
        )
    if templates is not None and template_id not in templates:
        raise DataError(
            f"{place}: template_id {template_id!r} is not in the templates table; "
            f"expected {_nearest(template_id, sorted(templates))}"
        )


def _nearest(found: str, known: Iterable[str]) -> str:
    names = list(known)
    near = get_close_matches(found.lower(), names, n=1)
    listed = ", ".join(names) if len(names) <= 5 else f"one of its {len(names)} ids"
    return f"{listed} (perhaps {near[0]!r})" if near else listed
