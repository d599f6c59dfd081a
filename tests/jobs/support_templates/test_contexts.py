"""Rolling window (test vector 4) and stage-2 samples without leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.errors import ConfigError, DataError
from jobs.support_templates.contexts import (
    BLANK_CONTEXT,
    NO_MESSAGE_BEFORE,
    ContextConfig,
    Marks,
    Sample,
    context,
    context_marks,
    context_text,
    samples_of,
    window,
)
from jobs.support_templates.data.rows import Case, Message, Role
from jobs.support_templates.samples import SAMPLE_SCHEMA, check_redacted, sample_table

STARTED = datetime(2026, 1, 2, tzinfo=UTC)


def numbered(lengths: Sequence[int]) -> list[list[int]]:
    """Messages of the given lengths in which every token is different."""
    starts = [1 + sum(lengths[:i]) for i in range(len(lengths))]
    return [list(range(start, start + n)) for start, n in zip(starts, lengths, strict=True)]


def encode(texts: Sequence[str]) -> list[list[int]]:
    """One token for each character."""
    return [[ord(letter) for letter in text] for text in texts]


def case_of(*messages: tuple[Role, str, str | None]) -> Case:
    rows = tuple(
        Message(idx, role, text, template_id=template)
        for idx, (role, text, template) in enumerate(messages)
    )
    return Case("case-1", STARTED, "en-US", rows)


def built(
    case: Case, config: ContextConfig, version: str = "r1"
) -> tuple[list[Sample], Counter[str]]:
    skipped: Counter[str] = Counter()
    samples = samples_of(
        case,
        side="train",
        redactor_version=version,
        encode=encode,
        marks=context_marks(config, encode, end_of_text=0),
        config=config,
        skipped=skipped,
    )
    return list(samples), skipped


def text_of(sample: Sample) -> str:
    return "".join(map(chr, sample.tokens))


LENGTHS = [10, 200, 150, 100, 120, 60]


def test_window_keeps_the_last_whole_messages_that_fit() -> None:
    messages = numbered(LENGTHS)
    cut = window(messages, [0], 512)
    assert (len(cut.tokens), cut.messages_used, cut.messages_total) == (433, 4, 6)
    assert list(cut.tokens) == [*messages[2], 0, *messages[3], 0, *messages[4], 0, *messages[5]]
    assert (cut.truncated, cut.cut_inside) == (True, False)


def test_window_of_634_tokens_takes_the_second_message_too() -> None:
    assert window(numbered(LENGTHS), [0], 633).messages_used == 4
    assert window(numbered(LENGTHS), [0], 634).messages_used == 5


def test_newest_message_that_is_too_long_keeps_its_last_tokens() -> None:
    messages = numbered(LENGTHS)
    cut = window(messages, [0], 59)
    assert list(cut.tokens) == messages[-1][-59:]
    assert (cut.messages_used, cut.truncated, cut.cut_inside) == (1, True, True)


def test_newest_message_that_just_fits_is_whole() -> None:
    messages = numbered(LENGTHS)
    cut = window(messages, [0], 61)
    assert list(cut.tokens) == messages[-1]
    assert (len(cut.tokens), cut.messages_used, cut.cut_inside) == (60, 1, False)


def test_a_single_message_that_fits_is_not_truncated() -> None:
    assert not window([[1, 2]], [0], 2).truncated
    assert window([[1, 2]], [0], 1).truncated


def test_a_window_without_messages_is_refused() -> None:
    with pytest.raises(DataError, match="at least one message"):
        window([], [0], 10)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    separator=st.lists(st.just(0), max_size=2),
    max_tokens=st.integers(1, 40),
)
def test_window_is_the_longest_suffix_that_fits(
    lengths: list[int], separator: list[int], max_tokens: int
) -> None:
    messages = numbered(lengths)

    def glued(suffix: list[list[int]]) -> list[int]:
        whole: list[int] = []
        for place, message in enumerate(suffix):
            whole += (separator if place else []) + message
        return whole

    fitting = [
        used
        for used in range(1, len(messages) + 1)
        if len(glued(messages[len(messages) - used :])) <= max_tokens
    ]
    cut = window(messages, separator, max_tokens)
    assert len(cut.tokens) <= max_tokens
    assert cut.messages_total == len(messages)
    if fitting:
        assert cut.messages_used == max(fitting)
        assert list(cut.tokens) == glued(messages[len(messages) - max(fitting) :])
        assert cut.cut_inside is False
        assert cut.truncated == (max(fitting) < len(messages))
    else:
        assert list(cut.tokens) == messages[-1][-max_tokens:]
        assert (cut.messages_used, cut.cut_inside, cut.truncated) == (1, True, True)


def test_every_template_of_an_advocate_is_a_sample_of_what_came_before() -> None:
    case = case_of(
        ("customer", "help", None),
        ("advocate", "free text", None),
        ("customer", "card", None),
        ("advocate", "answer", "t-card"),
        ("customer", "thanks", None),
        ("advocate", "bye", "t-bye"),
    )
    samples, skipped = built(case, ContextConfig(max_tokens=100))
    assert [(s.sample_id, s.template_id, s.depth) for s in samples] == [
        ("case-1#3", "t-card", 3),
        ("case-1#5", "t-bye", 5),
    ]
    assert text_of(samples[0]) == "help\nfree text\ncard"
    assert text_of(samples[1]) == "help\nfree text\ncard\nanswer\nthanks"
    assert not skipped


def test_samples_without_a_context_are_counted_by_reason() -> None:
    case = case_of(
        ("advocate", "welcome", "t-greet"),
        ("customer", "hi", None),
        ("advocate", "hello", "t-hello"),
    )
    samples, skipped = built(case, ContextConfig())
    assert [s.template_id for s in samples] == ["t-hello"]
    assert skipped == {NO_MESSAGE_BEFORE: 1}
    blank = case_of(("customer", "  ", None), ("advocate", "hello", "t-hello"))
    samples, skipped = built(blank, ContextConfig())
    assert samples == []
    assert skipped == {BLANK_CONTEXT: 1}


def test_a_blank_newest_message_does_not_hide_the_real_ones() -> None:
    config = ContextConfig(max_tokens=4)
    cut = context([[1, 2, 3, 4, 5, 6], []], Marks((0,)), config)
    assert cut is not None
    assert list(cut.tokens) == [3, 4, 5, 6]
    assert context([[], []], Marks((0,)), config) is None


def test_options_change_tags_separator_and_reach() -> None:
    case = case_of(("customer", "a", None), ("system", "b", None), ("advocate", "c", "t"))
    one = {
        "plain": ContextConfig(),
        "tags": ContextConfig(role_tags=True),
        "end": ContextConfig(separator="end-of-text"),
        "last": ContextConfig(last_message_only=True),
    }
    texts = {name: text_of(built(case, config)[0][0]) for name, config in one.items()}
    assert texts == {
        "plain": "a\nb",
        "tags": "<CUSTOMER>: a\n<SYSTEM>: b",
        "end": "a\x00b",
        "last": "b",
    }
    (last,), _ = built(case, ContextConfig(last_message_only=True))
    assert (last.depth, last.truncated) == (2, False)
    assert context_text(case.messages[:2], last_message_only=False) == "a\nb"
    assert context_text(case.messages[:2], last_message_only=True) == "b"


WORDS = st.text(alphabet="abc ", min_size=0, max_size=12)


@given(
    texts=st.lists(st.tuples(WORDS, st.sampled_from(["customer", "template", "free"])), max_size=9),
    max_tokens=st.integers(1, 60),
    role_tags=st.booleans(),
    last_message_only=st.booleans(),
)
def test_a_context_depends_on_no_labelled_or_later_message(
    texts: list[tuple[str, str]], max_tokens: int, role_tags: bool, last_message_only: bool
) -> None:
    config = ContextConfig(
        max_tokens=max_tokens, role_tags=role_tags, last_message_only=last_message_only
    )
    messages: list[tuple[Role, str, str | None]] = [
        (
            "customer" if kind == "customer" else "advocate",
            text,
            "t" if kind == "template" else None,
        )
        for text, kind in texts
    ]
    samples, skipped = built(case_of(*messages), config)
    assert len(samples) + skipped.total() == sum(kind == "template" for _, kind in texts)
    for sample in samples:
        later: list[tuple[Role, str, str | None]] = [
            (role, "LEAK", template) for role, _, template in messages[sample.depth :]
        ]
        changed, _ = built(case_of(*messages[: sample.depth], *later), config)
        again = next(other for other in changed if other.sample_id == sample.sample_id)
        assert again == sample
        assert "LEAK" not in text_of(again)


def test_samples_of_unredacted_text_are_refused() -> None:
    case = case_of(("customer", "a", None), ("advocate", "b", "t"))
    with pytest.raises(DataError, match="redactor version"):
        built(case, ContextConfig(), version="")


def test_no_room_for_a_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_tokens is 0"):
        ContextConfig(max_tokens=0)


def test_samples_survive_arrow_with_16_bit_tokens() -> None:
    case = case_of(("customer", "card", None), ("advocate", "b", "t"))
    samples, _ = built(case, ContextConfig())
    table = sample_table(samples)
    assert table.schema == SAMPLE_SCHEMA
    assert table.schema.field("tokens").type.value_type == pa.uint16()
    (row,) = table.to_pylist()
    assert Sample(**{**row, "tokens": tuple(row["tokens"])}) == samples[0]
    assert sample_table([]).schema == SAMPLE_SCHEMA
    assert check_redacted(table) == "r1"


def test_a_token_beyond_16_bits_is_refused_by_name() -> None:
    case = case_of(("customer", "\U0001f600", None), ("advocate", "b", "t"))
    samples, _ = built(case, ContextConfig())
    with pytest.raises(DataError, match="case-1#1"):
        sample_table(samples)


def test_tables_of_no_or_several_redactors_are_refused() -> None:
    case = case_of(("customer", "card", None), ("advocate", "b", "t"))
    one, other = (sample_table(built(case, ContextConfig(), version=v)[0]) for v in ("r1", "r2"))
    with pytest.raises(DataError, match=r"r1.*r2"):
        check_redacted(pa.concat_tables([one, other]))
    with pytest.raises(DataError, match="no column redactor_version"):
        check_redacted(one.drop_columns("redactor_version"))


def test_the_reply_cue_takes_its_room_from_the_budget() -> None:
    messages = numbered([10, 200, 150, 100, 120, 60])
    config = ContextConfig(max_tokens=436, reply_cue=True)
    marks = Marks(separator=(0,), ending=(0, 7, 8))
    found = context(messages, marks, config)
    assert found is not None
    assert found == replace(
        window(messages, [0], 433), tokens=(*window(messages, [0], 433).tokens, 0, 7, 8)
    )
    assert len(found.tokens) == 436
    tight = context(messages, marks, replace(config, max_tokens=435))
    assert tight is not None
    assert tight.messages_used == 3
    cut_inside = context(messages, marks, replace(config, max_tokens=61))
    assert cut_inside is not None
    assert cut_inside.tokens == (*messages[-1][-58:], 0, 7, 8)


def test_the_reply_cue_ends_a_context_where_stage_1_begins_a_reply() -> None:
    case = case_of(("customer", "my card", None), ("advocate", "hello", "t"))
    config = ContextConfig(max_tokens=512, reply_cue=True)
    [sample], _ = built(case, config)
    assert list(sample.tokens) == encode(["my card\n<ADVOCATE>:"])[0]
    with pytest.raises(ConfigError, match="max_tokens of at least"):
        context_marks(replace(config, max_tokens=3), encode, end_of_text=0)
