"""One simulated case in the making: its messages so far, its clock and its random streams.

What is said and when is decided by the caller; here it is typed, timed and put on record. Flow,
typing and personal data draw from three streams, so that switching one off leaves the others as
they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import TypeVar

from faker import Faker

from jobs.support_templates.data.issues import phrases
from jobs.support_templates.data.rows import Case, Message, Role, Template
from jobs.support_templates.data.sim_config import SimConfig
from jobs.support_templates.data.writing import Kind, Piece, type_out, with_personal_data

T = TypeVar("T")

LOCALES = {"en-US": 0.92, "en-GB": 0.04, "en-CA": 0.02, "en-AU": 0.01, "en-IN": 0.01}
"""Shares of the locales of cases."""

_SECONDS_TO_ANSWER: dict[Role, tuple[float, float]] = {
    "customer": (10, 150),
    "advocate": (15, 75),
    "system": (1, 5),
}


@dataclass(frozen=True, slots=True)
class GoldSpan:
    """Where personal data were put into a message, for measuring redaction."""

    case_id: str
    """The case."""
    idx: int
    """The message's `idx`."""
    start: int
    """First character of the value."""
    end: int
    """The character after the value's last."""
    kind: Kind
    """What it is."""


class Chat:
    """A case in the making: its messages so far, its clock and its random streams."""

    def __init__(
        self,
        case_id: str,
        config: SimConfig,
        fake: Faker,
        replies: Mapping[str, Template],
        started_at: datetime,
        random: Random,
    ) -> None:
        self.random = random
        self.clock = started_at
        self.spans: list[GoldSpan] = []
        self._case_id = case_id
        self._started_at = started_at
        self._config = config
        self._fake = fake
        self._replies = replies
        self._typing = Random(f"{config.seed}/{case_id}/typing")
        self._personal = Random(f"{config.seed}/{case_id}/personal")
        self._messages: list[Message] = []
        self._advocate_id = f"advocate-{random.randrange(config.advocates):03d}"
        self._locale = random.choices(list(LOCALES), list(LOCALES.values()))[0]
        fake.random = self._personal

    def chance(self, share: float) -> bool:
        """Whether something happens that has this probability."""
        return self.random.random() < share

    def one_of(self, choices: Sequence[T]) -> T:
        """One of the choices, each equally likely."""
        return self.random.choice(choices)

    def customer(self, text: str) -> None:
        """A customer's passing remark."""
        self._type([Piece(text)], typo_share=0.0)

    def opening(self, pieces: Sequence[Piece]) -> None:
        """A customer's complaint, with typing errors."""
        self._type(pieces, self._config.typo_share)

    def _type(self, pieces: Sequence[Piece], typo_share: float) -> None:
        if self._personal.random() < self._config.personal_share:
            sentences = phrases().personal
            pieces = with_personal_data(pieces, sentences, self._fake, self._personal)
        lower_case_share = self._config.lower_case_share
        text, spans = type_out(
            pieces, self._typing, lower_case_share=lower_case_share, typo_share=typo_share
        )
        idx = len(self._messages)
        self.spans += [GoldSpan(self._case_id, idx, one.start, one.end, one.kind) for one in spans]
        self.say("customer", text)

    def reply(self, template_id: str) -> None:
        """The advocate sends a template."""
        self.say("advocate", self._replies[template_id].body, template_id)

    def say(self, role: Role, text: str, template_id: str | None = None) -> None:
        """Add a message; the first has the time of the case, the others come after a while."""
        if self._messages:
            self.clock += timedelta(seconds=int(self.random.uniform(*_SECONDS_TO_ANSWER[role])))
        self._messages.append(
            Message(
                idx=len(self._messages),
                role=role,
                text=text,
                sent_at=self.clock,
                template_id=template_id,
                advocate_id=self._advocate_id if role == "advocate" else None,
            )
        )

    def case(self) -> Case:
        """The finished case."""
        return Case(self._case_id, self._started_at, self._locale, tuple(self._messages))
