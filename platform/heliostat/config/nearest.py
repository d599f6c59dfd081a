"""Which valid name a mistyped one was meant to be.

Keys are compared by their last part and as whole dotted paths, so `batch` finds `dapt.fit.batch`
and `dapt.fit.bacth` finds the sibling rather than a look-alike in another section. Similarity is
difflib's ratio (Ratcliff and Obershelp).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher, get_close_matches
from itertools import takewhile

CUTOFF = 0.6
"""Below this two names are strangers (difflib's own default)."""
TIE = 0.015
"""Candidates this close to the best are all named."""
DEPTH_COST = 0.02
"""What each level costs when the typed key names no section: the shallower key is likelier."""
PREFIX_GAIN = 0.1
"""What the right sections add when the typed key names some."""
MOST = 3
"""How many candidates are named at most."""


def nearest_names(typed: str, names: Iterable[str]) -> list[str]:
    """The single best match for a plain name (a job, a size, a choice), as a list of 0 or 1."""
    known = {name.lower(): name for name in names}
    return [known[name] for name in get_close_matches(typed.lower(), known, n=1, cutoff=CUTOFF)]


def nearest_keys(typed: str, keys: Iterable[str]) -> list[str]:
    """The best matches for a dotted key, best first; several when they are equally good."""
    scored = [(_score(typed, key), key) for key in keys]
    best = max((score for score, _ in scored), default=0.0)
    if best < CUTOFF:
        return []
    good = [(-score, key) for score, key in scored if score >= best - TIE]
    return [key for _, key in sorted(good)[:MOST]]


def one_of(names: Sequence[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _score(typed: str, key: str) -> float:
    """How alike two dotted keys are: by their last part, and by their sections where given."""
    *typed_sections, typed_name = typed.split(".")
    *sections, name = key.split(".")
    end = _ratio(typed_name, name)
    if not typed_sections:
        return end - DEPTH_COST * len(sections)
    pairs = zip(typed_sections, sections, strict=False)
    prefix = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    whole = _ratio(typed, key)
    return 0.5 * end + 0.5 * whole + PREFIX_GAIN * prefix / len(typed_sections)


def _ratio(left: str, right: str) -> float:
    return SequenceMatcher(None, left, right, autojunk=False).ratio()
