"""Recall on Faker's texts and false flags on real banking questions, by the acceptance figures."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from faker import Faker

from heliostat.errors import DataError
from jobs.support_templates.redaction import KINDS, Span, build_redactor, measure_recall

REDACTOR = build_redactor(presidio=False)
QUESTIONS = Path(__file__).parents[4] / "shared" / "data" / "banking77" / "train.csv"

CARRIERS = {
    "NAME": (
        "my name is {}", "Hi, this is {} and I need help", "{} here, my transfer is pending",
        "the card is under {}", "i sent money to {} yesterday", "I tried to pay {} and it failed",
        "it should say {} on the card", "my full name: {}", "Thanks, {}",
    ),
    "EMAIL": ("my email is {}", "{} is my address", "please write to {}.", "email:{}"),
    "PHONE": ("my phone number is {}", "call me on {}", "{}", "my cell: {}.", "text me at {} now"),
    "CARD": ("my card number is {}", "card {} was declined", "{}", "i used {} to pay"),
    "SSN": ("my ssn is {}", "{}", "social security number {}."),
    "ADDRESS": ("my address is {}", "i live at {}", "{}", "i moved to {} in may", "to {} please"),
    "HANDLE": ("my handle is {}", "i am {} on the app", "{}", "user {} sent me money"),
    "DOB": ("my date of birth is {}", "born {}", "dob: {}", "{} is my birthday"),
    "IP": ("my ip is {}", "login from {}", "{}", "there was an access from {}."),
    "URL": ("see {}", "the site {} charged me", "{}", "i clicked on {}."),
    "IBAN": ("my iban is {}", "{}", "send it to {} please"),
    "ACCOUNT": ("my account number is {}", "acct no. {}", "the account {} is mine", "credit {}"),
}  # fmt: skip


def in_fours(digits: str) -> str:
    return " ".join(digits[i : i + 4] for i in range(0, len(digits), 4))


def makers(fake: Faker) -> dict[str, list[Callable[[], str]]]:
    """For each kind the ways in which Faker writes it."""
    return {
        "NAME": [fake.name, lambda: f"{fake.first_name()} {fake.last_name()}", fake.first_name],
        "EMAIL": [fake.email, fake.company_email, fake.free_email],
        "PHONE": [fake.phone_number],
        "CARD": [fake.credit_card_number, lambda: in_fours(fake.credit_card_number("visa"))],
        "SSN": [fake.ssn],
        "ADDRESS": [fake.address, fake.street_address, lambda: fake.address().replace("\n", ", ")],
        "HANDLE": [lambda: f"@{fake.user_name()}"],
        "DOB": [
            lambda: str(fake.date_of_birth()),
            lambda: fake.date_of_birth().strftime("%m/%d/%Y"),
            lambda: fake.date_of_birth().strftime("%B %d, %Y"),
        ],
        "IP": [fake.ipv4, fake.ipv6],
        "URL": [fake.url, fake.uri],
        "IBAN": [fake.iban, lambda: in_fours(fake.iban())],
        "ACCOUNT": [fake.bban, lambda: fake.numerify("########")],
    }


def generate(
    locale: str, kinds: tuple[str, ...], count: int, is_lower: bool
) -> tuple[list[str], list[list[Span]]]:
    """`count` messages a kind with one gold span each."""
    fake = Faker(locale)
    fake.seed_instance(20240531)
    choice = random.Random(20240531).choice
    texts, gold = [], []
    for kind in kinds:
        for _ in range(count):
            carrier, value = choice(CARRIERS[kind]), choice(makers(fake)[kind])()
            if is_lower:
                carrier, value = carrier.lower(), value.lower()
            start = carrier.index("{}")
            texts.append(carrier.format(value))
            gold.append([Span(start, start + len(value), kind)])
    return texts, gold


@pytest.mark.parametrize("is_lower", [False, True])
def test_recall_on_american_texts_meets_the_acceptance_figures(is_lower: bool) -> None:
    measured = measure_recall(*generate("en_US", KINDS, 200, is_lower), REDACTOR)
    least = dict.fromkeys(KINDS, 0.98) | {"NAME": 0.90, "ADDRESS": 0.85}
    found = {kind: measured.by_kind[kind].recall for kind in KINDS}
    assert {kind: recall for kind, recall in found.items() if recall < least[kind]} == {}
    assert {figure.n for figure in measured.by_kind.values()} == {200}


@pytest.mark.parametrize("locale", ["en_GB", "en_CA", "de_DE", "fr_FR", "es_ES", "pl_PL", "en_IN"])
def test_structured_recall_holds_in_other_locales(locale: str) -> None:
    kinds = ("EMAIL", "PHONE", "CARD", "HANDLE", "DOB", "IP", "URL", "IBAN", "ACCOUNT")
    measured = measure_recall(*generate(locale, kinds, 60, False), REDACTOR)
    found = {kind: measured.by_kind[kind].recall for kind in kinds}
    assert {kind: recall for kind, recall in found.items() if recall < 0.98} == {}


@pytest.mark.parametrize(
    ("locale", "least"), [("en_GB", 0.95), ("de_DE", 0.8), ("fr_FR", 0.9), ("en_IN", 0.75)]
)
def test_names_of_other_countries_are_mostly_found(locale: str, least: float) -> None:
    measured = measure_recall(*generate(locale, ("NAME",), 200, False), REDACTOR)
    assert measured.by_kind["NAME"].recall >= least


def test_hardly_any_real_banking_question_is_flagged() -> None:
    if not QUESTIONS.exists():
        pytest.skip(f"BANKING77 is not at {QUESTIONS}; fetch it to measure false flags")
    with QUESTIONS.open(encoding="utf-8", newline="") as lines:
        texts = [row["text"] for row in csv.DictReader(lines)]
    measured = measure_recall(texts, [[] for _ in texts], REDACTOR)
    assert measured.clean_messages == len(texts)
    assert measured.false_flag_share <= 0.005


def test_a_gold_span_counts_only_when_every_character_is_covered() -> None:
    text = "my name is john smith"
    whole = measure_recall([text], [[Span(11, 21, "NAME")]], REDACTOR)
    beyond = measure_recall([text], [[Span(8, 21, "NAME")]], REDACTOR)
    assert whole.by_kind["NAME"].recall == 1.0
    assert beyond.by_kind["NAME"].recall == 0.0


def test_a_gold_span_outside_its_message_is_refused() -> None:
    with pytest.raises(DataError, match="message 0"):
        measure_recall(["short"], [[Span(0, 9, "NAME")]], REDACTOR)


def test_messages_and_gold_spans_of_different_number_are_refused() -> None:
    with pytest.raises(DataError, match="1 messages and gold spans for 2"):
        measure_recall(["one"], [[], []], REDACTOR)
