"""Tokens to text, a token at a time: whole characters only, and nothing of a stop string.

A token may be a part of a character, and a stop string may begin in one token and end in another.
So text is told when it is certain: when its bytes are whole characters, and when it cannot be the
beginning of a stop string any more.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence


class Detokeniser:
    """The text of one completion."""

    def __init__(self, token_bytes: Callable[[int], bytes], stop: Sequence[str]) -> None:
        """Begin a completion.

        Args:
            token_bytes: the bytes of a token.
            stop: the strings that end it, none of them empty.
        """
        self._token_bytes, self._stop = token_bytes, tuple(stop)
        # Bytes that are no UTF-8 become the replacement character, as a decoder of all would do.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.is_stopped = False

    def add(self, token: int) -> str:
        """The text that is certain with this token and was not before."""
        return self._scan(self._decoder.decode(self._token_bytes(token)))

    def finish(self) -> str:
        """What is still held back: half a character, the beginning of a stop string."""
        if self.is_stopped:
            return ""
        text = self._scan(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return text if self.is_stopped else text + held

    def _scan(self, text: str) -> str:
        if self.is_stopped:
            return ""
        known = self._held + text
        found = [place for place in (known.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return known[: min(found)]
        keep = _beginning(known, self._stop)
        self._held = known[len(known) - keep :]
        return known[: len(known) - keep]


def _beginning(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of the text that is the beginning of a stop string."""
    longest = max((len(one) - 1 for one in stop), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(one.startswith(text[-length:]) for one in stop):
            return length
    return 0
