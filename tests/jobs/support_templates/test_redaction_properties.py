"""Properties of redaction that hold for any text."""

from __future__ import annotations

import string
from datetime import date

from hypothesis import given, settings
from hypothesis import strategies as st
from stdnum import luhn

from jobs.support_templates.redaction import KINDS, build_redactor

REDACTOR = build_redactor(presidio=False)

FRAGMENTS = (
    "hi hello my name is john Smith Will mark and the card account number order born call me at on "
    "Street street Apt 12 4711 5551234567 555-123-4567 4111111111111111 4111 1111 @ @john a@b.co "
    ". , <NAME> <CUSTOMER> < > <EMAIL http:// www.x.com 10.0.0.1 :: fe80::1 1985-03-04 March 3 $ # "
    "+ ( ) GB47CUSU53640525943518 123-45-6789 é ß İ ١٢٣ 90210 CA de Van O'Neil Jr. user"
)
WORDS = st.sampled_from([*FRAGMENTS.split(), "\u0301", "\u200b", "\n"])
MIXED = st.lists(st.one_of(WORDS, st.text(max_size=4)), max_size=25).flatmap(
    lambda parts: st.sampled_from(["", " ", "  ", "\n"]).map(lambda gap: gap.join(parts))
)
ANY_TEXT = st.one_of(st.text(max_size=200), MIXED)


@settings(max_examples=400, deadline=None)
@given(ANY_TEXT)
def test_redaction_is_idempotent(text: str) -> None:
    once = REDACTOR.redact(text).text
    again = REDACTOR.redact(once)
    assert again.text == once
    assert again.spans == ()


@settings(max_examples=400, deadline=None)
@given(ANY_TEXT)
def test_spans_are_disjoint_ordered_and_rebuild_the_redacted_text(text: str) -> None:
    redaction = REDACTOR.redact(text)
    rebuilt, position = "", 0
    for span in redaction.spans:
        assert position <= span.start < span.end <= len(text)
        assert span.kind in KINDS
        rebuilt += text[position : span.start] + f"<{span.kind}>"
        position = span.end
    assert rebuilt + text[position:] == redaction.text


@settings(max_examples=200, deadline=None)
@given(ANY_TEXT)
def test_counts_agree_with_the_spans_and_the_fast_path_with_the_full_one(text: str) -> None:
    redaction = REDACTOR.redact(text)
    kinds = [span.kind for span in redaction.spans]
    assert redaction.counts == {kind: kinds.count(kind) for kind in kinds}
    assert REDACTOR.redact_text(text) == redaction.text


@settings(max_examples=200, deadline=None)
@given(MIXED)
def test_literal_placeholders_survive_in_number_and_order(text: str) -> None:
    literals = [tag for tag in ("<NAME>", "<CUSTOMER>") if tag in text]
    redacted = REDACTOR.redact(text)
    for tag in literals:
        kind = tag.strip("<>")
        assert redacted.text.count(tag) == text.count(tag) + redacted.counts.get(kind, 0)


lower = st.text(string.ascii_lowercase, min_size=2, max_size=10)
emails = st.builds("{}.{}@{}.com".format, lower, lower, lower)
phones = st.from_regex(r"[2-9][0-9]{2}-[2-9][0-9]{2}-[0-9]{4}(x[0-9]{2,5})?", fullmatch=True)
cards = st.from_regex(r"[45][0-9]{14}", fullmatch=True).map(lambda c: c + luhn.calc_check_digit(c))
social = st.from_regex(r"[0-9]{3}-[0-9]{2}-[0-9]{4}", fullmatch=True)
ips = st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(lambda ip: ip.exploded))
urls = st.builds("https://{}.{}/{}".format, lower, st.sampled_from(["com", "io", "it"]), lower)
handles = lower.map("@{}".format)
accounts = st.from_regex(r"[A-Z]{4}[0-9]{14}", fullmatch=True)
births = st.dates(date(1900, 1, 1), date(2099, 12, 31)).map(date.isoformat)
carriers = st.sampled_from(
    ["{}", "it is {}", "please use {} now", "({})", "{}, thanks", "is it {}?", "my data:\n{}\nok"]
)


@settings(max_examples=500, deadline=None)
@given(carriers, st.one_of(emails, phones, cards, social, ips, urls, handles, accounts))
def test_no_structured_value_survives_in_any_carrier(carrier: str, value: str) -> None:
    assert value not in REDACTOR.redact_text(carrier.format(value))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["i was born on {}", "dob: {}", "my date of birth is {}"]), births)
def test_no_date_after_a_cue_of_birth_survives(carrier: str, day: str) -> None:
    assert day not in REDACTOR.redact_text(carrier.format(day))
