"""The schemes that are compared, and the settings of each that are tried.

A method is a scheme with its settings still open. Each method that has settings gets the same
number of trials, `TRIALS`, chosen on one half of the evaluation windows and reported on the other.
With x = n / L the expansion:

* frequency methods and interpolation: k from x / 2 to 4 x, with and without log-n scaling;
* self_extend: window and group; dca: chunk and local size; rerope: window; all with log-n scaling
  after training, from which all three gain.

`rope` has nothing but the scaling to choose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.positions import LogN, PositionScheme, SchemeName

Text = Literal["natural", "repeated"]
Method = Literal[
    "rope", "pi", "ntk_old", "ntk", "ntk_fixed", "ntk_mixed", "yarn", "self_extend", "dca", "rerope"
]

METHODS: tuple[Method, ...] = (
    "rope",
    "pi",
    "ntk_old",
    "ntk",
    "ntk_fixed",
    "ntk_mixed",
    "yarn",
    "self_extend",
    "dca",
    "rerope",
)
TRIALS = 9
"""Settings tried of every method but rope."""
LEAKY_INTERVALS = (2.0, 16.0, 32.0)
_SIXTEENTHS = (1, 2, 4, 6, 8, 10, 12, 14, 16)


@dataclass(frozen=True)
class Trial:
    """A scheme read at a length, on natural or repeated text."""

    scheme: PositionScheme
    length: int
    text: Text = "natural"


def windows(train_length: int) -> list[int]:
    """The windows of a sweep, from L/16 to L."""
    return [max(1, train_length * part // 16) for part in _SIXTEENTHS]


def settings(method: Method, *, train_length: int, length: int) -> list[PositionScheme]:
    """What is tried of a method at a length; `TRIALS` different schemes, two of rope."""
    x = length / train_length
    if method == "rope":
        return [PositionScheme("rope", log_n="none"), PositionScheme("rope", log_n="post")]
    if method == "rerope":
        return [rerope(window, "post") for window in windows(train_length)]
    if method == "self_extend":
        return [
            PositionScheme(
                "self_extend",
                log_n="post",
                window=train_length * part // 16,
                group=max(1, round(factor * x)),
            )
            for part in (4, 6, 8)
            for factor in (1, 2, 4)
        ]
    if method == "dca":
        return [
            PositionScheme(
                "dca",
                log_n="post",
                chunk=train_length * part // 16,
                local=train_length // divisor,
            )
            for part in (8, 12, 14)
            for divisor in (16, 8, 4)
        ]
    if method == "ntk_mixed":
        pairs = [(beta, k) for beta in (0.5, 0.625, 0.75) for k in (x, 2 * x)]
        plain = [PositionScheme("ntk_mixed", beta=beta, interval=k) for beta, k in pairs]
        scaled = [
            PositionScheme("ntk_mixed", log_n="post", beta=beta, interval=x)
            for beta in (0.5, 0.625, 0.75)
        ]
        return [*plain, *scaled]
    return [
        *(_expanded(method, "none", k) for k in (x / 2, x, 1.5 * x, 2 * x, 4 * x)),
        *(_expanded(method, "post", k) for k in (x, 1.5 * x, 2 * x, 4 * x)),
    ]


def rerope(window: int, log_n: LogN) -> PositionScheme:
    """ReRoPE."""
    return PositionScheme("rerope", log_n=log_n, window=window)


def leaky_windows(length: int) -> tuple[int, ...]:
    """Windows of the leaky trials: with them k = 16 keeps 8 L within the positions trained."""
    return length // 4, length // 2


def leaky(window: int, interval: float) -> PositionScheme:
    """Leaky ReRoPE, with log-n scaling after training."""
    return PositionScheme("leaky_rerope", log_n="post", window=window, interval=interval)


def label(scheme: PositionScheme) -> str:
    """A short name for tables: `rerope w32 log n post`."""
    parts: list[str] = [scheme.name]
    for letter, value in (
        ("w", scheme.window),
        ("G", scheme.group),
        ("s", scheme.chunk),
        ("l", scheme.local),
        ("k", scheme.interval),
    ):
        if value is not None:
            parts.append(f"{letter}{value:g}")
    if scheme.name == "ntk_mixed":
        parts.append(f"beta{scheme.beta:g}")
    if scheme.log_n != "none":
        parts.append(f"log n {scheme.log_n}")
    return " ".join(parts)


def _expanded(name: SchemeName, log_n: LogN, k: float) -> PositionScheme:
    return PositionScheme(name, log_n=log_n, interval=k)
