"""Stage-2 samples: for every template that an advocate sent, the conversation before it.

The context of a labelled message is every message of the case before it, never the message itself
or a later one, cut to a token budget by a rolling window that drops whole messages, earliest
first. Sections 3 and 4 of Wyatte et al. (arXiv 2405.15765) describe the window; which separator
joins the messages, and that an over-long newest message keeps its last tokens, are our decisions.

Messages are tokenised one by one and joined by separator tokens, rather than tokenised as one text
and cut. The length of a context is then exactly the sum of its parts, so truncation by whole
messages is exact and a message has the same tokens whatever surrounds it: in a longer context, in
a shorter one, and at serving, where the tokens of earlier messages can be kept. A merge across a
newline, the only thing this gives up, would make all three depend on what was cut.

Nothing here redacts, builds label indices or touches Arrow; see `samples.py` for the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from heliostat.errors import ConfigError, DataError
from jobs.corpora.tokenizer import Encode
from jobs.support_templates.data.rows import Case, Message
from jobs.support_templates.split import Side
from jobs.support_templates.transcript import MESSAGE_SEPARATOR, ROLE_TAGS, tagged

Separator = Literal["newline", "end-of-text"]

NO_MESSAGE_BEFORE = "no_message_before"
BLANK_CONTEXT = "blank_context"


@dataclass(frozen=True)
class ContextConfig:
    """How a context is cut and joined; serving must use the values of training."""

    max_tokens: int = 512
    """Longest context, in tokens, separators included."""
    role_tags: bool = False
    """Write each message as `<ROLE>: text`; the paper found no gain and it costs room."""
    separator: Separator = "newline"
    """What stands between two messages: `newline` or `end-of-text`."""
    reply_cue: bool = False
    """End with the separator and the advocate's tag. The classifier then reads its answer where
    stage 1 learned to write the reply; the paper does not show what ends its contexts."""
    last_message_only: bool = False
    """Ablation: the context is the newest message alone."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}: expected at least 1")


@dataclass(frozen=True)
class Marks:
    """The tokens of a context that belong to no message."""

    separator: tuple[int, ...]
    """Between two messages."""
    ending: tuple[int, ...] = ()
    """After the newest message."""


@dataclass(frozen=True)
class Window:
    """The part of a conversation that fits the token budget."""

    tokens: tuple[int, ...]
    messages_used: int
    messages_total: int
    cut_inside: bool
    """The newest message alone was too long and lost its beginning."""
    truncated: bool
    """Anything was left out: whole messages or the beginning of the newest."""


@dataclass(frozen=True)
class Sample:
    """One labelled context."""

    sample_id: str
    """`CASE#POSITION` of the labelled message; unique over the data."""
    case_id: str
    side: Side
    template_id: str
    tokens: tuple[int, ...]
    depth: int
    """Messages before the labelled one, before any truncation."""
    started_at: datetime
    truncated: bool
    cut_inside: bool
    redactor_version: str


def window(messages: Sequence[Sequence[int]], separator: Sequence[int], max_tokens: int) -> Window:
    """The longest suffix of whole messages within `max_tokens`, separators included.

    Where even the newest message is too long its last `max_tokens` tokens are kept.
    """
    if not messages or max_tokens < 1:
        raise DataError(
            f"a context window needs at least one message and one token of room: "
            f"got {len(messages)} messages and max_tokens {max_tokens}"
        )
    newest = messages[-1]
    if len(newest) > max_tokens:
        return Window(
            tokens=tuple(newest[-max_tokens:]),
            messages_used=1,
            messages_total=len(messages),
            cut_inside=True,
            truncated=True,
        )
    used, length = 1, len(newest)
    for message in reversed(messages[:-1]):
        length += len(separator) + len(message)
        if length > max_tokens:
            break
        used += 1
    return Window(
        tokens=_joined(messages[len(messages) - used :], separator),
        messages_used=used,
        messages_total=len(messages),
        cut_inside=False,
        truncated=used < len(messages),
    )


def context(before: Sequence[Sequence[int]], marks: Marks, config: ContextConfig) -> Window | None:
    """What the model reads, from the tokens of every earlier message; None if all are blank.

    Training and serving both come through here. Blank messages count for nothing: kept, one could
    be the whole of a window whose newest real message is too long.
    """
    spoken = [message for message in before if message]
    if not spoken:
        return None
    read = spoken[-1:] if config.last_message_only else spoken
    cut = window(read, marks.separator, config.max_tokens - len(marks.ending))
    return replace(cut, tokens=cut.tokens + marks.ending)


def context_texts(before: Sequence[Message], config: ContextConfig) -> list[str]:
    """The earlier messages as stage 2 writes them, nothing at all for a blank one."""
    return [
        (tagged(message) if config.role_tags else message.text) if message.text.strip() else ""
        for message in before
    ]


def context_text(before: Sequence[Message], *, last_message_only: bool) -> str:
    """The earlier messages as one untruncated text: what the classical baselines read."""
    spoken = [message.text for message in before if message.text.strip()]
    return MESSAGE_SEPARATOR.join(spoken[-1:] if last_message_only else spoken)


def context_marks(config: ContextConfig, encode: Encode, end_of_text: int) -> Marks:
    """The tokens between messages and after them; a ConfigError if they leave no room for any."""
    newline, cue = map(tuple, encode([MESSAGE_SEPARATOR, f"{ROLE_TAGS['advocate']}:"]))
    separator = (end_of_text,) if config.separator == "end-of-text" else newline
    marks = Marks(separator, separator + cue if config.reply_cue else ())
    if config.max_tokens <= len(marks.ending):
        raise ConfigError(
            f"max_tokens is {config.max_tokens} and reply_cue is true, whose tag takes "
            f"{len(marks.ending)} tokens: expected max_tokens of at least {len(marks.ending) + 1}"
        )
    return marks


def samples_of(
    case: Case,
    *,
    side: Side,
    redactor_version: str,
    encode: Encode,
    marks: Marks,
    config: ContextConfig,
    skipped: Counter[str],
) -> Iterator[Sample]:
    """Every sample of a redacted case; candidates without a context are counted in `skipped`.

    A candidate is an advocate message with a template. It is skipped as `no_message_before` when
    the advocate opens the case, and as `blank_context` when nothing before it has any token.
    """
    if not redactor_version:
        raise DataError(
            f"case {case.case_id!r} carries no redactor version: redact the texts before "
            f"building samples"
        )
    tokens = encode(context_texts(case.messages, config))
    for position, message in enumerate(case.messages):
        if message.role != "advocate" or message.template_id is None:
            continue
        if position == 0:
            skipped[NO_MESSAGE_BEFORE] += 1
            continue
        cut = context(tokens[:position], marks, config)
        if cut is None:
            skipped[BLANK_CONTEXT] += 1
            continue
        yield Sample(
            sample_id=f"{case.case_id}#{position}",
            case_id=case.case_id,
            side=side,
            template_id=message.template_id,
            tokens=cut.tokens,
            depth=position,
            started_at=case.started_at,
            truncated=cut.truncated,
            cut_inside=cut.cut_inside,
            redactor_version=redactor_version,
        )


def _joined(messages: Sequence[Sequence[int]], separator: Sequence[int]) -> tuple[int, ...]:
    joined = list(messages[0])
    for message in messages[1:]:
        joined += [*separator, *message]
    return tuple(joined)
