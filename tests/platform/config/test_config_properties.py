"""Properties of config loading over free-form input."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from heliostat.config.dump import digest_of, to_yaml
from heliostat.config.explain import annotated_yaml
from heliostat.config.int_range import IntRange
from heliostat.config.layers import read_file, read_override
from heliostat.config.lines import dotted
from heliostat.config.load import LoadedConfig, load_layers
from heliostat.config.schema import Section, walk
from heliostat.config.values import to_plain
from heliostat.errors import ConfigError

# The machine may be busy: how long an example takes says nothing here.
UNHURRIED = settings(deadline=None, max_examples=100)
ONE = IntRange(1, 1)


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    label: str | None = None
    counts: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Config:
    seed: int = 0
    text: str = "a"
    truth: bool = True
    either: int | str = 1
    span: IntRange = ONE
    inner: Inner = field(default_factory=Inner)
    entries: dict[str, Inner] = field(default_factory=dict)


KEYS = [dotted(path) for path, _ in walk(Section(Config), {})]
# What a file can hold: every character but lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
WHOLE = st.integers(-(2**62), 2**62)
INNERS = st.builds(
    Inner,
    rate=st.floats(allow_nan=False),
    label=st.none() | TEXT,
    counts=st.lists(WHOLE, max_size=3),
)
CONFIGS = st.builds(
    Config,
    seed=WHOLE,
    text=TEXT,
    truth=st.booleans(),
    either=WHOLE | TEXT,
    span=st.tuples(WHOLE, WHOLE).map(lambda pair: IntRange(min(pair), max(pair))),
    inner=INNERS,
    entries=st.dictionaries(TEXT, INNERS, max_size=2),
)


def reload(text: str) -> LoadedConfig[Config]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(text, encoding="utf-8", newline="\n")
        return load_layers(Config, [read_file(path)])


def one_edit(word: str) -> st.SearchStrategy[str]:
    """The word with one character left out, doubled or replaced."""
    at = st.integers(0, len(word) - 1)
    left_out = at.map(lambda index: word[:index] + word[index + 1 :])
    doubled = at.map(lambda index: word[:index] + word[index] + word[index:])
    replaced = at.map(lambda index: f"{word[:index]}q{word[index + 1 :]}")
    return left_out | doubled | replaced


@given(CONFIGS)
@UNHURRIED
def test_the_resolved_yaml_gives_the_same_config_back(config: Config) -> None:
    plain = to_plain(Section(Config), config)
    assert isinstance(plain, dict)
    again = reload(to_yaml(plain))
    assert again.config == config
    assert again.digest == digest_of(plain)
    assert again.resolved_yaml == to_yaml(plain)


@given(CONFIGS)
@UNHURRIED
def test_the_annotated_yaml_gives_the_same_config_back(config: Config) -> None:
    plain = to_plain(Section(Config), config)
    assert isinstance(plain, dict)
    assert reload(annotated_yaml(reload(to_yaml(plain)))).config == config


def refusal(argument: str) -> str | None:
    """What is said about an argument; None when it is taken."""
    try:
        load_layers(Config, [read_override(argument)])
    except ConfigError as error:
        return str(error)
    return None


@given(st.sampled_from(KEYS).flatmap(one_edit), TEXT)
@UNHURRIED
def test_a_mistyped_key_is_a_config_error_of_one_line(key: str, value: str) -> None:
    assume(key not in KEYS and not key.startswith("entries."))
    message = refusal(f"{key}={value}")
    assert message is not None
    assert message.startswith("command line: ")
    assert "\n" not in message


@given(st.sampled_from([key for key in KEYS if len(key) > 4]).flatmap(one_edit))
@UNHURRIED
def test_a_key_with_one_wrong_character_is_told_a_right_key(key: str) -> None:
    assume(key not in KEYS and not key.startswith("entries."))
    message = refusal(f"{key}=1")
    assert message is not None
    assert any(known in message for known in KEYS)


@given(TEXT)
@UNHURRIED
def test_any_text_as_a_file_is_a_config_or_a_config_error(text: str) -> None:
    with suppress(ConfigError):
        reload(text)


@given(TEXT | st.tuples(st.sampled_from(KEYS), TEXT).map("=".join))
@UNHURRIED
def test_any_argument_is_taken_or_a_config_error(argument: str) -> None:
    message = refusal(argument)
    assert message is None or message.startswith("command line: ")


@given(TEXT)
@UNHURRIED
def test_text_on_the_command_line_is_taken_as_typed(text: str) -> None:
    assume("${" not in text and text.strip() not in ("null", "Null", "NULL", "~", "???"))
    assume(not text.lstrip().startswith(("[", "{", "'", '"')))
    assert load_layers(Config, [read_override(f"text={text}")]).config.text == text
