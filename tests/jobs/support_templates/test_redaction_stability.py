"""Redaction is the same in every process, bound to its version, and linear in hostile text."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time

import pytest
from faker import Faker

from jobs.support_templates.redaction import REDACTOR_VERSION, build_redactor

REDACTOR = build_redactor(presidio=False)

DIGESTS = {"1": "2912000e438c613ba86a79da4a263e1d"}
"""For each version of the rules a digest of what they make of `sample`."""

PROGRAM = """
import hashlib
from jobs.support_templates.redaction import build_redactor
redactor = build_redactor(presidio=False)
texts = ["my name is john smith, 4111 1111 1111 1111", "Hi Mark, 12 Baker Street, London"]
print(hashlib.blake2b(repr([redactor.redact(text) for text in texts]).encode()).hexdigest())
"""

HOSTILE = [
    "a", "1", "1 ", "A ", "@", "a.", "a@a.", "1.", "1-", "1 2-", "00 ", "<", "<NAME>", "a'a",
    "john smith ", "Smith, ", "12 main ", "12 Main Road ", "12 st", "my name is ", "Hi A, ",
    "account number is ", "born 1", "GB12 ", "192.168.", "fe80:", "http://", "www.", "4111 ",
    "4111 1111 1111 1111 ", "call ", "A. ", "Mr ", "van de ", "psc 1 box ", "a_1 ", "Aaa 1, ",
    "\u0300", "\u0661",
]  # fmt: skip


def sample() -> list[str]:
    """Messages that touch every rule."""
    fake = Faker("en_US")
    fake.seed_instance(1)
    texts = []
    for _ in range(50):
        texts += [
            f"my name is {fake.name()}", fake.address(), fake.name().lower(), f"Hi {fake.name()},",
            f"call {fake.phone_number()}", f"{fake.email()} {fake.url()} {fake.ipv6()}",
            f"card {fake.credit_card_number()} ssn {fake.ssn()} iban {fake.iban()}",
            f"born {fake.date_of_birth()}, account {fake.bban()}", fake.sentence(),
        ]  # fmt: skip
    return texts


def test_a_change_of_rules_comes_with_a_change_of_version() -> None:
    redacted = "\n".join(REDACTOR.redact_text(text) for text in sample())
    digest = hashlib.blake2b(redacted.encode(), digest_size=16).hexdigest()
    assert DIGESTS.get(REDACTOR_VERSION) == digest, (
        "the rules redact otherwise than version "
        f"{REDACTOR_VERSION} did; raise REDACTOR_VERSION and record the digest {digest}"
    )


def test_the_version_without_a_second_layer_is_that_of_the_rules() -> None:
    assert REDACTOR.version == REDACTOR_VERSION


def test_redaction_does_not_depend_on_the_process_or_its_hash_seed() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4711")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("unit", HOSTILE)
def test_twenty_thousand_hostile_characters_take_a_fraction_of_a_second(unit: str) -> None:
    text = (unit * 20_000)[:20_000]
    REDACTOR.redact_text("warm")
    begin = time.process_time()
    REDACTOR.redact_text(text)
    assert time.process_time() - begin < 1.0


def test_a_clean_message_takes_far_under_a_tenth_of_a_millisecond() -> None:
    text = "when will my new card arrive because i have been waiting weeks"
    REDACTOR.redact_text(text)
    fastest = float("inf")
    for _ in range(20):
        begin = time.process_time()
        for _ in range(100):
            REDACTOR.redact_text(text)
        fastest = min(fastest, (time.process_time() - begin) / 100)
    assert fastest < 1e-4
