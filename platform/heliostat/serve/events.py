"""An append-only log of events in a database: each kind and id once, kept before it is confirmed.

A file is an SQLite database, which several replicas of one machine share; for several machines give
the URL of a database server. Rows are never changed or deleted from here.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    MetaData,
    String,
    Table,
    Text,
    and_,
    create_engine,
    event,
    insert,
    select,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from heliostat.errors import ConfigError

logger = logging.getLogger(__name__)

FLUSH_S = 0.25
WAIT_S = 10.0
MOST_WAITING = 100_000
"""Events that wait for a database that is away; what comes beyond is not kept."""
_METADATA = MetaData()
_EVENTS = Table(
    "events",
    _METADATA,
    Column("kind", String(32), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("at", String(40), nullable=False, index=True),
    Column("body", Text, nullable=False),
)


class RepeatedEvent(Exception):
    """An event of this kind and id is there already; it was kept as it was."""


class EventsAway(Exception):
    """The database cannot be used now; what should have been kept was not."""


@dataclass(frozen=True)
class Event:
    """One row."""

    kind: str
    id: str
    at: datetime
    body: Mapping[str, object]


class EventLog:
    """A log of events; its methods may be called from any thread."""

    def __init__(self, place: str) -> None:
        """Open a log, making it where there is none.

        Args:
            place: a file, or a URL that SQLAlchemy knows.
        """
        self._engine = _engine(place)
        self._later: list[dict[str, str]] = []
        self._lost = 0
        """Events that found no room to wait."""
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._flush_often, name="events", daemon=True)
        self._thread.start()

    def append(self, kind: str, id_: str, body: Mapping[str, object]) -> None:
        """Keep an event durably.

        Raises:
            RepeatedEvent: it is there already.
            EventsAway: it could not be kept.
        """
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(_EVENTS), _row(kind, id_, body))
        except IntegrityError:
            raise RepeatedEvent from None
        except SQLAlchemyError as error:
            # Its text quotes the event.
            logger.error("an event could not be kept: %s", type(error).__name__)
            raise EventsAway from None

    def append_later(self, kind: str, id_: str, body: Mapping[str, object]) -> None:
        """Keep an event within a moment, together with others; its id must be a new one."""
        with self._lock:
            if len(self._later) < MOST_WAITING:
                self._later.append(_row(kind, id_, body))
            else:
                self._lost += 1

    def rows(self, kind: str, since: datetime | None = None) -> Iterator[Event]:
        """The events of a kind, oldest first; raises `EventsAway` when they cannot be read."""
        self.flush()
        query = select(_EVENTS).where(_EVENTS.c.kind == kind).order_by(_EVENTS.c.at)
        if since is not None:
            query = query.where(_EVENTS.c.at >= since.astimezone(UTC).isoformat())
        with self._reading() as connection:
            for row in connection.execute(query):
                yield Event(row.kind, row.id, datetime.fromisoformat(row.at), json.loads(row.body))

    def answers(
        self, kind: str, to: str, since: datetime
    ) -> Iterator[tuple[Event, Mapping[str, object] | None]]:
        """The events of a kind, oldest first, each with the body of what it answers.

        Args:
            kind: of the answers.
            to: of the events with the same id that are answered; None where there is none.
            since: of the answers.

        Raises:
            EventsAway: they cannot be read.
        """
        self.flush()
        answered = _EVENTS.alias()
        same = and_(answered.c.id == _EVENTS.c.id, answered.c.kind == to)
        query = (
            select(_EVENTS, answered.c.body.label("answered"))
            .join(answered, same, isouter=True)
            .where(_EVENTS.c.kind == kind, _EVENTS.c.at >= since.astimezone(UTC).isoformat())
            .order_by(_EVENTS.c.at)
        )
        with self._reading() as connection:
            for row in connection.execute(query):
                event_ = Event(
                    row.kind, row.id, datetime.fromisoformat(row.at), json.loads(row.body)
                )
                yield event_, None if row.answered is None else json.loads(row.answered)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            logger.error("the events could not be read: %s", type(error).__name__)
            raise EventsAway from None

    def flush(self) -> None:
        """Keep what was left for later, and wait a moment for what another thread is writing."""
        if not self._flushing.acquire(timeout=WAIT_S):
            logger.warning("another thread has been writing events for %g s", WAIT_S)
            return
        try:
            self._flush()
        finally:
            self._flushing.release()

    def _flush(self) -> None:
        with self._lock:
            rows, self._later = self._later, []
            lost, self._lost = self._lost, 0
        if lost:
            logger.error("%d events were not kept: too many wait for the database", lost)
        if not rows:
            return
        try:
            self._keep(rows)
        except SQLAlchemyError as error:
            logger.warning("%d events wait for the database: %s", len(rows), type(error).__name__)
            with self._lock:
                self._later = [*rows, *self._later]

    def _keep(self, rows: list[dict[str, str]]) -> None:
        """Write rows, except those that are there already: a commit may have lost its answer."""
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(_EVENTS), rows)
            return
        except IntegrityError:
            logger.warning("some of %d events are kept already", len(rows))
        for row in rows:
            with suppress(IntegrityError), self._engine.begin() as connection:
                connection.execute(insert(_EVENTS), row)

    def close(self) -> None:
        """Keep what is left and disconnect."""
        self._closing.set()
        self._thread.join(timeout=10)
        self.flush()
        self._engine.dispose()

    def _flush_often(self) -> None:
        while not self._closing.wait(FLUSH_S):
            self.flush()


def _row(kind: str, id_: str, body: Mapping[str, object]) -> dict[str, str]:
    at = datetime.now(UTC).isoformat(timespec="microseconds")
    return {"kind": kind, "id": id_, "at": at, "body": json.dumps(body)}


def _engine(place: str) -> Engine:
    is_file = "://" not in place
    if is_file:
        Path(place).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(f"sqlite:///{place}" if is_file else place)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _durable)
    try:
        _METADATA.create_all(engine)
    except SQLAlchemyError as error:
        raise ConfigError(f"events is {place}, which cannot be opened: {error}") from error
    return engine


def _durable(connection: object, _: object) -> None:
    """Readers beside a writer, and a commit that survives a power cut."""
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
