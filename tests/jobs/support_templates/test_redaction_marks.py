"""What is ruled out by the marks of a text could not have matched; a memory changes nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.support_templates.redaction.marks import Marks
from jobs.support_templates.redaction.patterns import find_patterns
from jobs.support_templates.redaction.person_names import find_names
from jobs.support_templates.redaction.redactor import build_redactor

PIECES = (
    *("my name is", "Hi", "i'm", "this is", "thats", "regards,", "attn:", "call me", "paid"),
    *("Anna", "john smith", "Mark", "Dr. Lee", "O'Neil", "will", "card holder:", "my wife"),
    *("12 main street", "P.O. Box 123", "Flat 5, 10 Hill Way", "AB12 3CD", "90210", "zip 12345"),
    *("live at 5 Elm Row", "Hauptstr. 12", "12 rue de la paix", "via roma 12", "APO AE 09012"),
    *("Austin, TX 78701", "Plac Nowy 5, 31-056 Kraków", "dob 1/2/1980", "born 5 may 1970"),
    *("2001-02-03", "March 4, 1999", "4111 1111 1111 1111", "cvv 123", "123-45-6789"),
    *("tax id 123-456-789", "AB 12 34 56 C", "GB82 WEST 1234 5698 7654 32", "a/c 12345678"),
    *("sort-code 12-34-56", "account number is 00123456", "X1Y2Z3A4B5C6D7E8", "123456789012"),
    *("+44 20 7946 0958", "(415) 555-0123", "020 7946 0958", "555-0123", "text me 07700900123"),
    *("a.b@example.com", "anna at gmail dot com", "x.com/abc", "https://a.b", "10.0.0.1", "::1"),
    *("@tom", "$mary_k", "user name: zed99", "twitter is zed", "$45", "on Monday", "order 12345"),
)
GLUE = (" ", "  ", "\n", ", ", ". ", "", "-", ": ")

texts = st.lists(
    st.tuples(st.sampled_from(PIECES), st.sampled_from(GLUE)), min_size=1, max_size=6
).map(lambda parts: "".join(piece + glue for piece, glue in parts))
changed = st.tuples(
    texts, st.sampled_from([str, str.upper, str.lower, str.title, str.swapcase])
).map(lambda pair: pair[1](pair[0]))


@settings(deadline=None, max_examples=400)
@given(text=changed)
def test_every_pattern_finds_the_same_when_none_is_ruled_out(text: str) -> None:
    marks = Marks.of(text)
    everything = marks._replace(is_plain=False)
    assert sorted(find_patterns(marks)) == sorted(find_patterns(everything))
    assert find_names(marks) == find_names(everything)


@pytest.mark.parametrize("text", ["paſt 12 main ſtreet", "my \u212aard 12", "name iſ anna"])
def test_letters_that_stand_for_ascii_ones_rule_nothing_out(text: str) -> None:
    marks = Marks.of(text)
    assert not marks.is_plain
    assert marks.may_hold("never there")
    assert marks.may_hold_word(frozenset({"never"}))


@settings(deadline=None, max_examples=100)
@given(found=st.lists(changed, min_size=1, max_size=8))
def test_a_redactor_that_remembers_gives_the_same(found: list[str]) -> None:
    plain = build_redactor(False)
    remembering = plain.remembering(4)
    assert remembering.version == plain.version
    for text in [*found, *found]:
        assert remembering.redact(text) == plain.redact(text)
