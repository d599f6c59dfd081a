"""How customers type: the rate of errors and the exactness of spans."""

from __future__ import annotations

import re
from random import Random

import pytest
from faker import Faker
from hypothesis import given
from hypothesis import strategies as st
from stdnum import iban, luhn

from jobs.support_templates.data.writing import (
    KINDS,
    Piece,
    mistype,
    personal_value,
    type_out,
)

PIECES = st.lists(
    st.builds(Piece, text=st.text(max_size=20), kind=st.sampled_from([None, None, *KINDS])),
    max_size=6,
)


@given(pieces=PIECES, seed=st.integers(0, 2**32), lower=st.floats(0, 1), typos=st.floats(0, 1))
def test_spans_cover_the_values_whatever_happens_around_them(
    pieces: list[Piece], seed: int, lower: float, typos: float
) -> None:
    text, spans = type_out(pieces, Random(seed), lower_case_share=lower, typo_share=typos)
    values = [piece for piece in pieces if piece.kind is not None]
    assert [span.kind for span in spans] == [piece.kind for piece in values]
    for span, piece in zip(spans, values, strict=True):
        assert text[span.start : span.end] in (piece.text, piece.text.lower())


@given(text=st.text(), seed=st.integers(0, 2**32))
def test_without_errors_the_text_stays(text: str, seed: int) -> None:
    assert mistype(text, 0.0, Random(seed)) == text


def test_the_share_of_letters_that_are_mistyped_is_the_given_one() -> None:
    random = Random(0)
    changed = sum(mistype(" q ", 0.03, random) != " q " for _ in range(60_000))
    assert changed / 60_000 == pytest.approx(0.03, abs=0.003)
    typed = mistype("payment " * 20_000, 0.03, Random(1)).split()
    broken = sum(word != "payment" for word in typed) / 20_000
    assert broken == pytest.approx(1 - 0.97**7, abs=0.01)


def test_only_letters_are_mistyped() -> None:
    assert mistype("12345 67-89 !?", 1.0, Random(0)) == "12345 67-89 !?"


def test_real_text_from_a_file_is_left_alone() -> None:
    pieces = [Piece("One more question: "), Piece("Where IS my card?", is_verbatim=True)]
    text, _ = type_out(pieces, Random(0), lower_case_share=1.0, typo_share=1.0)
    assert text.endswith("Where IS my card?")
    assert not text.startswith("One more question")


@pytest.mark.parametrize("kind", KINDS)
def test_values_depend_on_the_random_state_only(kind: str) -> None:
    def values() -> list[str]:
        random = Random(5)
        fake = Faker("en_US")
        fake.random = random
        return [personal_value(kind, fake, random) for _ in range(20)]  # type: ignore[arg-type]

    assert values() == values()
    assert len(set(values())) > 10
    assert not any("\n" in value for value in values())


def test_grouping_keeps_every_digit_of_cards_and_ibans() -> None:
    random = Random(3)
    fake = Faker("en_US")
    fake.random = random
    cards = [personal_value("CARD", fake, random) for _ in range(300)]
    assert {len(re.sub("[ -]", "", card)) for card in cards} >= {13, 15, 16}
    assert any(re.fullmatch(r"\d{4} \d{4} \d{4} \d{4}", card) for card in cards)
    assert any(re.fullmatch(r"\d{4}-\d{6}-\d{5}", card) for card in cards)
    assert all(luhn.is_valid(re.sub("[ -]", "", card)) for card in cards)
    ibans = [personal_value("IBAN", fake, random) for _ in range(100)]
    assert all(iban.is_valid(one) for one in ibans)
    assert any(" " in one for one in ibans)
