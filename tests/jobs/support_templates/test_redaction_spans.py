"""Merging, collapsing and replacing spans: the rules that hold whatever finds the spans."""

from __future__ import annotations

import pytest

from jobs.support_templates.redaction.redactor import MAX_ROUNDS, LayeredRedactor
from jobs.support_templates.redaction.spans import KINDS, Span, collapse, merge, pieces, replace


def test_the_kinds_are_those_of_the_specification_in_its_order() -> None:
    assert KINDS == (
        "NAME", "EMAIL", "PHONE", "CARD", "SSN", "ADDRESS",
        "HANDLE", "DOB", "IP", "URL", "IBAN", "ACCOUNT",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([Span(0, 5, "NAME"), Span(3, 12, "URL")], [Span(0, 12, "URL")]),
        ([Span(3, 12, "URL"), Span(0, 5, "NAME")], [Span(0, 12, "URL")]),
        ([Span(0, 5, "ACCOUNT"), Span(0, 5, "PHONE")], [Span(0, 5, "PHONE")]),
        ([Span(0, 5, "ACCOUNT"), Span(4, 9, "IBAN")], [Span(0, 9, "IBAN")]),
        ([Span(0, 5, "NAME"), Span(5, 9, "URL")], [Span(0, 5, "NAME"), Span(5, 9, "URL")]),
        (
            [Span(0, 4, "NAME"), Span(3, 9, "URL"), Span(8, 13, "IP")],
            [Span(0, 13, "URL")],
        ),
        ([Span(0, 9, "URL"), Span(2, 4, "NAME")], [Span(0, 9, "URL")]),
    ],
)
def test_overlapping_spans_unite_and_the_longest_gives_the_kind(
    spans: list[Span], expected: list[Span]
) -> None:
    assert merge(spans) == expected


def test_neighbours_of_one_kind_collapse_only_over_white_space() -> None:
    text = "ab \n\tcd, ef gh"
    spans = [Span(0, 2, "NAME"), Span(5, 7, "NAME"), Span(9, 11, "NAME"), Span(12, 14, "URL")]
    assert collapse(text, spans) == [Span(0, 7, "NAME"), Span(9, 11, "NAME"), Span(12, 14, "URL")]


def test_replacing_keeps_what_lies_outside_and_counts_in_the_order_of_kinds() -> None:
    redaction = replace("x AAA y BB z", [Span(2, 5, "URL"), Span(8, 10, "NAME")])
    assert redaction.text == "x <URL> y <NAME> z"
    assert list(redaction.counts.items()) == [("NAME", 1), ("URL", 1)]


def test_literal_placeholders_and_role_tags_cut_a_text_into_pieces() -> None:
    text = "a <NAME> b <CUSTOMER>: c <name> <OTHER>"
    assert [text[start:end] for start, end in pieces(text)] == ["a ", " b ", ": c <name> <OTHER>"]


def test_a_text_that_shows_more_in_every_round_is_redacted_whole_in_the_end() -> None:
    def last_letter(piece: str) -> list[Span]:
        return [Span(len(piece) - 1, len(piece), "NAME")] if piece else []

    redactor = LayeredRedactor("test", (last_letter,))
    text = "x" * (10 * MAX_ROUNDS)
    once = redactor.redact(text)
    assert once.text == "<NAME>"
    assert once.spans == (Span(0, len(text), "NAME"),)
    assert redactor.redact(once.text).text == once.text
