"""What the rules find and what they must leave alone, message by message."""

from __future__ import annotations

import pytest

from jobs.support_templates.redaction import build_redactor

REDACTOR = build_redactor(presidio=False)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("my name is john smith and i lost my card", "my name is <NAME> and i lost my card"),
        ("my name is will", "my name is <NAME>"),
        ("my name is sanjukta banerjee please help", "my name is <NAME> please help"),
        ("Hi Sarah, how are you", "Hi <NAME>, how are you"),
        ("Hi Mark,", "Hi <NAME>,"),
        ("regards, rose", "regards, <NAME>"),
        ("Will Smith paid", "<NAME> paid"),
        ("i paid April Barnes in April", "i paid <NAME> in April"),
        ("it's for Grace Kelly", "it's for <NAME>"),
        ("Dr. Mary-Jane O'Neil Jr. called", "<NAME> called"),
        ("name on the card: MR J SMITH", "name on the card: <NAME>"),
        ("name: Smith, John", "name: <NAME>"),
        ("I sent it to Jürgen Müller yesterday", "I sent it to <NAME> yesterday"),
        ("I sent it to María José García López today", "I sent it to <NAME> today"),
        ("my wife Ana and my son tom", "my wife <NAME> and my son <NAME>"),
        ("my name is jan van der berg", "my name is <NAME>"),
        ("john's card", "<NAME>'s card"),
        ("MY NAME IS JOHN SMITH", "MY NAME IS <NAME>"),
        ("My Name Is John Smith And I Lost My Card", "My Name Is <NAME> And I Lost My Card"),
        ("my name is Иван Петров, help", "my name is <NAME>, help"),
        ("my name is Jose\u0301, help", "my name is <NAME>, help"),
    ],
)
def test_names_are_found_in_every_way_of_typing(text: str, redacted: str) -> None:
    assert REDACTOR.redact_text(text) == redacted


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("mail john.o'neil@x.co.uk.", "mail <EMAIL>."),
        ("write to john dot smith at gmail dot com", "write to <EMAIL>"),
        ("john@localhost", "<EMAIL>"),
        ("call me on 555-123-4567 please", "call me on <PHONE> please"),
        ("(234)567-8901x123 or 234.567.8901", "<PHONE> or <PHONE>"),
        ("001-234-567-8901x12345", "<PHONE>"),
        ("text me on 07700 900123", "text me on <PHONE>"),
        ("it is +44(0)1164960123 2 days a week", "it is <PHONE> 2 days a week"),
        ("my number is 98765432", "my number is <PHONE>"),
        ("01 64 10 73 75", "<PHONE>"),
        ("my card 4111 1111 1111 1111 12 was charged", "my card <CARD> 12 was charged"),
        ("4111–1111–1111–1112", "<CARD>"),
        ("378282246310005 and 578196151703", "<CARD> and <CARD>"),
        ("cvv 123", "cvv <CARD>"),
        ("123-45-6789", "<SSN>"),
        ("last 4 of my social is 6789", "last 4 of my social is <SSN>"),
        ("my handle is @tfrye.", "my handle is <HANDLE>."),
        ("my username is smithjohn", "my username is <HANDLE>"),
        ("pay $johnsmith", "pay <HANDLE>"),
        ("born 3rd of March 1985", "born <DOB>"),
        ("dob 4/3/85", "dob <DOB>"),
        ("1985-03-04", "<DOB>"),
        ("03/04/2012 is my birthday", "<DOB> is my birthday"),
        ("from 10.0.0.1:8080 or 2001:db8::1.", "from <IP> or <IP>."),
        ("see http://www.smith.com/a?b=1.", "see <URL>."),
        ("(example.com/path)", "(<URL>)"),
        ("my iban is GB47 CUSU 5364 0525 9435 18 and then", "my iban is <IBAN> and then"),
        ("de89370400440532013000 please", "<IBAN> please"),
        ("my account number is 12345678", "my account number is <ACCOUNT>"),
        ("sort code 12-34-56", "sort code <ACCOUNT>"),
        ("JHTY72981506162251", "<ACCOUNT>"),
        ("i live at 836 Timothy Lakes\nNew Robert, GU 47266 now", "i live at <ADDRESS> now"),
        ("10 Downing St, London SW1A 2AA", "<ADDRESS>"),
        ("send it to 12 baker street please", "send it to <ADDRESS> please"),
        ("PSC 1234, Box 5678\nAPO AA 12345", "<ADDRESS>"),
        ("po box 123, springfield, il 62704", "<ADDRESS>"),
    ],
)
def test_structured_kinds_are_found_in_the_forms_that_people_type(text: str, redacted: str) -> None:
    assert REDACTOR.redact_text(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "Will you mark this as resolved? I hope so, else I'll grant access soon.",
        "The chase for a refund is a long way, please ping me back. May I?",
        "My name is not showing on the card",
        "my name is spelled wrong, the name of the merchant is missing",
        "call me back when it is done; I am rich; this is love",
        "Hi there, thanks for contacting us. I'm happy to help!",
        "Hi Team, please check. Thanks, Support",
        "Where Is My Card? Why Was I Charged Twice",
        "WHERE IS MY CARD? WILL IT ARRIVE IN MAY?",
        "I made a transfer from China to France with Apple Pay in New York",
        "it took 25 hours and 3 days the whole way",
        "it costs 20 per month, 5 street vendors charged me",
        "in 2018 2019 and 2020, or 2019-2020",
        "I paid $1,250.00 and 10000 pounds on 12/05/2024 at 10:30:15",
        "my balance was 1 234 567 and the total £12345678",
        "order number 112-3456789-1234567, order 5551234567, ref: 99887766",
        "card ending in 1234, fee 0.50%, rate 1.2345, 24-48 hours",
        "my login is failing, my handle is broken, username not found",
        "version 1.2.3 of the app at 12:30:45, e.g. a.m. statement.pdf",
        "my account is blocked since 10 days, 3 transfers of 500 each",
        "error code 0x80070057 and 500 items in a row 3 times this way",
        "i was born in the wrong city",
        "",
        " \n",
    ],
)
def test_known_traps_are_left_alone(text: str) -> None:
    redaction = REDACTOR.redact(text)
    assert redaction.text == text
    assert redaction.spans == ()
    assert redaction.counts == {}


def test_literal_placeholders_and_role_tags_are_left_alone() -> None:
    text = "<CUSTOMER>: i am <NAME>\n<ADVOCATE>: <EMAIL> <EMAIL>\n<SYSTEM>: <ADDRESS>"
    assert REDACTOR.redact(text).text == text
    assert REDACTOR.redact(text).counts == {}


def test_a_find_beside_a_literal_placeholder_leaves_the_literal_alone() -> None:
    assert REDACTOR.redact_text("<NAME> John") == "<NAME> <NAME>"


def test_neighbours_of_one_kind_become_one_placeholder_and_one_count() -> None:
    redaction = REDACTOR.redact("a@example.com  b@example.com")
    assert redaction.text == "<EMAIL>"
    assert redaction.counts == {"EMAIL": 1}
    assert (redaction.spans[0].start, redaction.spans[0].end) == (0, 28)


def test_the_result_repeats_no_value() -> None:
    secret = "4111 1111 1111 1111"
    assert secret not in repr(REDACTOR.redact(f"my card is {secret}"))
