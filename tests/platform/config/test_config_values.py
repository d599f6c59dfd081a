"""What a key may hold: every kind of field, as YAML and as `key=value`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal

import pytest

from heliostat.config.int_range import IntRange
from heliostat.config.layers import read_file, read_override
from heliostat.config.load import load_layers
from heliostat.errors import ConfigError

ONE = IntRange(1, 1)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    steps: int | None = 3


@dataclass(frozen=True)
class Kinds:
    whole: int = 1
    number: float = 1.0
    truth: bool = False
    text: str = "a"
    maybe_text: str | None = None
    clip: float | None = 1.0
    choice: str = field(default="fp32", metadata={"choices": ("fp32", "on", "1e5")})
    stage: int = field(default=0, metadata={"choices": (0, 1, 2)})
    literal: Literal["a", "b"] = "a"
    colour: Colour = Colour.RED
    wholes: list[int] = field(default_factory=list)
    pair: tuple[float, ...] = ()
    names: list[str] = field(default_factory=list)
    either: int | str = 1
    window: int | list[int] = 0
    span: IntRange = ONE
    inner: Inner = field(default_factory=Inner)
    optional: Inner | None = None
    entries: dict[str, Inner] = field(default_factory=dict)
    many: list[Inner] = field(default_factory=list)


def from_line(text: str) -> Kinds:
    return load_layers(Kinds, [read_override(text)]).config


def from_file(text: str, folder: Path) -> Kinds:
    path = folder / "values.yaml"
    path.write_text(text, encoding="utf-8")
    return load_layers(Kinds, [read_file(path)]).config


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("whole=1e3", "whole", 1000),
        ("whole=1_000", "whole", 1000),
        ("whole=010", "whole", 10),
        ("number=3", "number", 3.0),
        ("number=1e-5", "number", 1e-5),
        ("number=.inf", "number", float("inf")),
        ("truth=yes", "truth", True),
        ("truth=False", "truth", False),
        ("text=no", "text", "no"),
        ("text=1e3", "text", "1e3"),
        ("text=007", "text", "007"),
        ("text=12:30", "text", "12:30"),
        ("text=2024-01-01", "text", "2024-01-01"),
        ("text=", "text", ""),
        ("text=a: b # c", "text", "a: b # c"),
        ("text='null'", "text", "null"),
        ("text=a=b", "text", "a=b"),
        ("maybe_text=null", "maybe_text", None),
        ("maybe_text=off", "maybe_text", "off"),
        ("clip=null", "clip", None),
        ("choice=on", "choice", "on"),
        ("choice=1e5", "choice", "1e5"),
        ("stage=2", "stage", 2),
        ("literal=b", "literal", "b"),
        ("colour=blue", "colour", Colour.BLUE),
        ("wholes=[1, 2]", "wholes", [1, 2]),
        ("wholes=[]", "wholes", []),
        ("pair=[1, 2.5]", "pair", (1.0, 2.5)),
        ("names=[no, 1e3, 'x y']", "names", ["no", "1e3", "x y"]),
        ("either=7", "either", 7),
        ("either=seven", "either", "seven"),
        ("window=[1, 2]", "window", [1, 2]),
        ("span=3", "span", IntRange(3, 3)),
        ("span=[1, 4]", "span", IntRange(1, 4)),
        ("inner.rate=2", "inner", Inner(rate=2.0)),
        ("inner={rate: 2, steps: null}", "inner", Inner(2.0, None)),
        ("optional.rate=2", "optional", Inner(rate=2.0)),
        ("optional=null", "optional", None),
        ("entries.first.steps=9", "entries", {"first": Inner(steps=9)}),
        ("many=[{rate: 1}, {}]", "many", [Inner(rate=1.0), Inner()]),
    ],
)
def test_an_override_gives_the_value_it_says(text: str, key: str, value: object) -> None:
    found = getattr(from_line(text), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("text: no", "text", "no"),
        ("text: 1_000", "text", "1_000"),
        ("text: 'null'", "text", "null"),
        ("number: 1e-5", "number", 1e-5),
        ("names: [yes, 08]", "names", ["yes", "08"]),
        (
            "entries: {no: {steps: 1}, 1: {steps: 2}}",
            "entries",
            {"no": Inner(0.5, 1), "1": Inner(0.5, 2)},
        ),
        ("inner:\n", "inner", Inner()),
        ("x: &a 3\nwhole: *a".replace("x: &a 3\n", "number: &a 3\n"), "whole", 3),
    ],
)
def test_a_file_gives_the_value_it_says(text: str, key: str, value: object, tmp_path: Path) -> None:
    assert getattr(from_file(text, tmp_path), key) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("whole=8.5", "'whole' must be a whole number, but is the number 8.5"),
        ("whole=true", "'whole' must be a whole number, but is true"),
        ("whole=null", "'whole' must be a whole number, but is null"),
        ("whole=eight", "'whole' must be a whole number, but is the text 'eight'"),
        (
            "whole=99999999999999999999",
            "'whole' must be a whole number, but is the number 99999999999999999999",
        ),
        ("whole=[1]", "'whole' must be a whole number, but is the list [1]"),
        ("number=.nan", "'number' must be a number, but is not a number (nan)"),
        ("number=true", "'number' must be a number, but is true"),
        ("truth=1", "'truth' must be true or false, but is the number 1"),
        ("text=null", "'text' must be text, but is null"),
        ("text=[a]", "'text' must be text, but is the list ['a']"),
        ("clip=x", "'clip' must be a number, but is the text 'x'"),
        (
            "choice=fp23",
            "'choice' must be one of fp32, on, 1e5, but is the text 'fp23'; the nearest is fp32",
        ),
        ("stage=3", "'stage' must be one of 0, 1, 2, but is the number 3"),
        ("stage=true", "'stage' must be one of 0, 1, 2, but is true"),
        ("literal=c", "'literal' must be one of a, b, but is the text 'c'"),
        (
            "colour=blu",
            "'colour' must be one of red, blue, but is the text 'blu'; the nearest is blue",
        ),
        ("wholes=3", "'wholes' must be a list, each item a whole number, but is the number 3"),
        ("wholes=[1, x]", "'wholes[1]' must be a whole number, but is the text 'x'"),
        (
            "window=x",
            "'window' must be a whole number or a list, each item a whole number, "
            "but is the text 'x'",
        ),
        ("inner=3", "'inner' must be a section with the keys rate, steps, but is the number 3"),
        (
            "entries.a=3",
            "'entries.a' must be a section with the keys rate, steps, but is the number 3",
        ),
        ("many=[{rate: x}]", "'many[0].rate' must be a number, but is the text 'x'"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_line(text)
    assert str(caught.value) == f"command line: {message}"


@pytest.mark.parametrize("value", ["x", "[4, 1]", "[1]", "[1, 2, 3]", "true", "1.5", "null"])
def test_a_wrong_range_is_refused(value: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^command line: 'span' must be a whole number such as 2"
    ):
        from_line(f"span={value}")


def test_an_empty_range_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="put the lower first"):
        IntRange(4, 1)
