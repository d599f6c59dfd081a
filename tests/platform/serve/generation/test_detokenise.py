"""Text told token by token: whole characters, no stop string, and all of it in the end."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import example, given

from heliostat.serve.generation.detokenise import Detokeniser


def told(pieces: list[bytes], stop: list[str]) -> tuple[list[str], bool]:
    """What each piece made certain, then the end; and whether a stop string ended it."""
    detokeniser = Detokeniser(lambda token: pieces[token], stop)
    parts = []
    for token in range(len(pieces)):
        parts.append(detokeniser.add(token))
        if detokeniser.is_stopped:
            return parts, True
    parts.append(detokeniser.finish())
    return parts, detokeniser.is_stopped


def cut(content: bytes, places: list[int]) -> list[bytes]:
    """Content in pieces, as a tokenizer may cut it: anywhere, some pieces empty."""
    ends = sorted(min(place, len(content)) for place in places)
    return [content[a:b] for a, b in zip([0, *ends], [*ends, len(content)], strict=True)]


PLACES = st.lists(st.integers(0, 60), max_size=30)


@given(st.text(max_size=20), PLACES)
def test_text_is_told_in_whole_characters_and_completely(text: str, places: list[int]) -> None:
    text = text.encode("utf-8", "ignore").decode()
    parts, _ = told(cut(text.encode(), places), [])
    assert "".join(parts) == text
    assert "\ufffd" in text or not any("\ufffd" in part for part in parts)


@given(st.binary(max_size=40), PLACES)
@example(b"\xe2\x82A\xff\xf0\x9f", [1, 2, 3])
def test_bytes_that_are_no_text_become_what_decoding_all_of_them_gives(
    content: bytes, places: list[int]
) -> None:
    parts, _ = told(cut(content, places), [])
    assert "".join(parts) == content.decode("utf-8", "replace")


STOPS = st.lists(st.text("ab€", min_size=1, max_size=4), min_size=1, max_size=3)


@given(st.text("ab€", max_size=25), STOPS, PLACES)
@example("aab", ["ab"], [1, 2])
@example("abab€", ["ab€"], [1, 2, 3, 4, 5])
def test_a_completion_ends_before_the_first_stop_string_wherever_tokens_end(
    text: str, stop: list[str], places: list[int]
) -> None:
    parts, is_stopped = told(cut(text.encode(), places), stop)
    found = [place for place in (text.find(one) for one in stop) if place >= 0]
    assert is_stopped == bool(found)
    said = "".join(parts)
    if not found:
        assert said == text
        return
    # Told too early it could not be taken back: where two stop strings overlap, the one that was
    # whole first ends the completion.
    assert text.startswith(said)
    assert not any(one in said for one in stop)
    assert any(text.startswith(one, len(said)) for one in stop)


def test_text_is_told_as_soon_as_it_is_certain() -> None:
    parts, _ = told([b"a", b"\xe2", b"\x82", b"\xac", b"E", b"N", b"x", b"EN", b"D"], ["END"])
    assert parts == ["a", "", "", "€", "", "", "ENx", "", ""]
