"""Mistakes in configs: each is one sentence with file, line, key, value and the nearest choice."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from heliostat.config.layers import read_file, read_override
from heliostat.config.load import LoadedConfig, load_layers
from heliostat.errors import ConfigError


@dataclass(frozen=True)
class Zero:
    stage: int = field(default=0, metadata={"choices": (0, 1, 2, 3)})
    offload: bool = False

    def __post_init__(self) -> None:
        if self.offload and self.stage == 0:
            raise ConfigError("offload needs stage 1, 2 or 3, but stage is 0")


@dataclass(frozen=True)
class Fit:
    batch: int = 8
    micro_batch: int = 4
    steps: int | None = None
    epochs: float | None = None
    zero: Zero = field(default_factory=Zero)

    def __post_init__(self) -> None:
        if self.batch % self.micro_batch:
            low = self.batch // self.micro_batch * self.micro_batch
            raise ConfigError(
                f"batch is {self.batch}, no multiple of micro_batch {self.micro_batch}: "
                f"use {low} or {low + self.micro_batch}"
            )
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"steps is {self.steps} and epochs is {self.epochs}: give exactly one of them"
            )


@dataclass(frozen=True)
class Stage:
    data: str
    fit: Fit = field(default_factory=lambda: Fit(steps=5))


@dataclass(frozen=True)
class Config:
    seed: int
    dapt: Stage
    dft: Stage
    note: str = ""
    spare: Zero | None = None
    more: dict[str, Stage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dapt.fit.steps == 13:
            raise ConfigError("13 brings bad luck to steps")


GOOD = """\
seed: 1
dapt:
  data: a
  fit:
    batch: 8
dft:
  data: b
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, *overrides: str) -> LoadedConfig[Config]:
    path = Path("config.yaml")
    path.write_text(text, encoding="utf-8")
    return load_layers(Config, [read_file(path), *map(read_override, overrides)])


def message(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.usefixtures("here")
class TestUnknownKeys:
    def test_in_a_file_has_line_value_and_nearest_key(self) -> None:
        assert message(GOOD.replace("    batch: 8", "    bacth: 8")) == (
            "config.yaml:5: there is no key 'dapt.fit.bacth' (given the number 8); "
            "the nearest is dapt.fit.batch"
        )

    def test_on_the_command_line_has_the_whole_path(self) -> None:
        assert message(GOOD, "batch=64") == (
            "command line: there is no key 'batch' (given the number 64); "
            "the nearest are dapt.fit.batch or dft.fit.batch"
        )

    def test_with_a_missing_section_finds_the_full_path(self) -> None:
        assert message(GOOD, "dapt.batch=64").endswith("the nearest is dapt.fit.batch")

    def test_with_a_mistyped_section_finds_the_full_path(self) -> None:
        assert message(GOOD, "dpat.fit.batch=64") == (
            "command line: there is no key 'dpat.fit.batch' (given the number 64); "
            "the nearest is dapt.fit.batch"
        )

    def test_unlike_any_lists_the_keys_of_the_section(self) -> None:
        assert message(GOOD, "dapt.fit.zero.qqqqqq=1").endswith("dapt.fit.zero has stage, offload")

    def test_below_a_value_is_told_that_it_has_no_keys(self) -> None:
        assert message(GOOD, "dapt.fit.batch.x=1") == (
            "command line: there is no key 'dapt.fit.batch.x' (given the number 1); "
            "'dapt.fit.batch' has no keys inside, it is a whole number"
        )

    def test_in_a_free_entry_finds_the_key_of_that_entry(self) -> None:
        assert message(GOOD, "more.x.data=d", "more.x.dta=d").endswith("the nearest is more.x.data")

    def test_overridden_by_a_later_source_is_still_refused(self) -> None:
        text = GOOD + "spare: {dta: c}\n"
        assert message(text, "spare=null").startswith("config.yaml:8: there is no key 'spare.dta'")


@pytest.mark.usefixtures("here")
class TestFiles:
    def test_a_duplicate_key_names_both_lines(self) -> None:
        assert message(GOOD + "seed: 2\n") == (
            "config.yaml:8: the key 'seed' is given twice, first in line 1"
        )

    def test_broken_yaml_names_the_line(self) -> None:
        assert message("seed: 1\ndapt: [1, 2\n").startswith("config.yaml:3: this is not valid YAML")

    def test_a_list_is_no_config(self) -> None:
        assert message("- 1\n") == (
            "config.yaml:1: a config is a section of `key: value` lines, not a list"
        )

    def test_a_file_that_is_not_there_is_named(self) -> None:
        with pytest.raises(ConfigError, match=r"^nowhere\.yaml: there is no such file$"):
            read_file(Path("nowhere.yaml"))

    def test_a_folder_is_no_file(self) -> None:
        Path("folder").mkdir()
        with pytest.raises(ConfigError, match=r"^folder: this is a folder"):
            read_file(Path("folder"))

    def test_bytes_that_are_no_text_are_named(self) -> None:
        Path("bad.yaml").write_bytes(b"a: \xff\n")
        with pytest.raises(ConfigError, match=r"^bad\.yaml: byte 3 is not UTF-8 text$"):
            read_file(Path("bad.yaml"))

    def test_an_alias_bomb_is_refused_quickly(self) -> None:
        levels = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
        assert "values in one file" in message("\n".join(levels))

    def test_an_alias_of_itself_is_refused(self) -> None:
        assert "levels of nesting" in message("seed: &a [*a]\n")

    def test_deep_nesting_is_refused(self) -> None:
        assert message("seed: " + "[" * 5000 + "]" * 5000).startswith("config.yaml")

    def test_a_tag_cannot_make_an_object(self) -> None:
        assert "must be a whole number" in message(
            GOOD.replace("seed: 1", "seed: !!python/name:os.system x")
        )

    def test_an_empty_file_changes_nothing(self) -> None:
        Path("empty.yaml").write_text("# only a comment\n")
        layers = [read_override(text) for text in ("seed=1", "dapt.data=a", "dft.data=b")]
        assert load_layers(Config, [read_file(Path("empty.yaml")), *layers]).config.seed == 1


@pytest.mark.usefixtures("here")
class TestMissingValues:
    def test_all_of_them_are_listed_at_once(self) -> None:
        assert message("seed: ???\ndapt: {data: a}\n") == (
            "config.yaml:1: 2 keys have no value yet: 'seed' (a whole number; config.yaml:1), "
            "'dft.data' (text); "
            "give it as seed=VALUE on the command line or in a file after --config"
        )

    def test_a_value_on_the_command_line_fills_it(self) -> None:
        assert load(GOOD.replace("seed: 1", "seed: ???"), "seed=3").config.seed == 3

    def test_one_in_an_entry_is_found(self) -> None:
        assert "'more.x.data' (text)" in message(GOOD, "more.x.fit.batch=4")


@pytest.mark.usefixtures("here")
class TestImpossibleCombinations:
    def test_name_both_keys_and_their_origins(self) -> None:
        assert message(GOOD, "dapt.fit.epochs=2") == (
            "command line: dapt.fit: steps is 5 and epochs is 2.0: give exactly one of them "
            "(dapt.fit.steps from default, dapt.fit.epochs from command line)"
        )

    def test_between_file_and_command_line_name_both_places(self) -> None:
        text = GOOD.replace("    batch: 8", "    batch: 8\n    steps: 7")
        assert message(text, "dapt.fit.epochs=2").startswith(
            "config.yaml:6 and command line: dapt.fit: steps is 7 and epochs is 2.0"
        )

    def test_give_the_way_out(self) -> None:
        assert message(GOOD, "dapt.fit.batch=10") == (
            "command line: dapt.fit: batch is 10, no multiple of micro_batch 4: use 8 or 12 "
            "(dapt.fit.batch from command line, dapt.fit.micro_batch from default)"
        )

    def test_found_by_a_shared_check_name_what_was_typed(self) -> None:
        assert message(GOOD, "dapt.fit.steps=13") == (
            "command line: dapt.fit.steps: 13 brings bad luck to steps"
        )

    def test_in_a_deep_section_have_the_whole_path(self) -> None:
        assert message(GOOD, "dapt.fit.zero.offload=true").startswith(
            "command line: dapt.fit.zero: offload needs stage 1, 2 or 3, but stage is 0"
        )


@pytest.mark.usefixtures("here")
class TestInterpolation:
    def test_takes_the_value_of_another_key(self) -> None:
        config = load(GOOD, "dft.data=${dapt.data}/${seed}", "note=${seed}").config
        assert (config.dft.data, config.note) == ("a/1", "1")

    def test_takes_a_whole_section_and_lets_it_be_changed(self) -> None:
        text = GOOD.replace("dft:\n  data: b\n", "dft: ${dapt}\n")
        config = load(text, "dft.data=c").config
        assert (config.dft.data, config.dft.fit.batch, config.dapt.data) == ("c", 8, "a")

    def test_of_a_key_that_is_not_there_names_the_nearest(self) -> None:
        assert message(GOOD, "note=${dapt.dta}") == (
            "command line: 'note' is '${dapt.dta}', which cannot be resolved: "
            "there is no key 'dapt.dta', the nearest is dapt.data"
        )

    def test_in_a_circle_is_refused(self) -> None:
        assert "cannot be resolved" in message(GOOD, "note=${dft.data}", "dft.data=${note}")

    def test_that_cannot_be_read_says_how_to_write_it(self) -> None:
        assert message(GOOD, "note=${") == (
            "command line: 'note' is '${', which cannot be resolved: "
            "write ${key}, or \\${ for the characters themselves"
        )

    def test_of_the_environment_is_refused(self) -> None:
        assert message(GOOD.replace("data: b", "data: ${oc.env:HOME}")).startswith(
            "config.yaml:7: 'dft.data' is '${oc.env:HOME}', but only references to other keys"
        )

    def test_of_a_section_with_other_keys_is_refused(self) -> None:
        assert message(GOOD.replace("dft:\n  data: b\n", "dft: ${dapt.fit}\n")) == (
            "config.yaml:6: the section that is referred to has 'batch', but there is no key "
            "'dft.batch'"
        )


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("text", ["batch", "=1", " =1", "--", "dapt.fit"])
def test_what_is_not_key_value_says_so(text: str) -> None:
    assert message(GOOD, text) == (
        f"command line: {text!r} is not an override; write key=value, without spaces"
    )


@pytest.mark.usefixtures("here")
def test_an_unreadable_list_on_the_command_line_mentions_quotes() -> None:
    assert message(GOOD, "note=[1").startswith(
        "command line: the value of 'note' is not valid YAML: '[1'; put the whole override in"
    )


@pytest.mark.usefixtures("here")
def test_bytes_of_the_command_line_that_are_no_text_are_refused() -> None:
    assert "is not UTF-8 text" in message(GOOD, "note=\udcff")
