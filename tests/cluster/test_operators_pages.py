"""The pages for operators: every command of ours on them is valid, every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.entrypoint import load_entrypoint

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "cluster" / "README.md", ROOT / "k8s" / "README.md")


def lines(page: Path) -> list[str]:
    """The commands of all blocks, continuation lines joined."""
    blocks = re.findall(r"```\n(.*?)```", page.read_text(), re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [line.split(" #")[0].strip() for line in text.splitlines() if line.strip()]


def test_the_submitted_commands_are_valid() -> None:
    submitted = [line for page in PAGES for line in lines(page) if " heliostat train " in line]
    assert len(submitted) == 2
    for line in submitted:
        assert line.startswith("ray job submit ")
        load_entrypoint(line.partition(" -- ")[2].strip())


def test_the_subcommands_and_options_of_ray_exist() -> None:
    from ray.scripts.scripts import cli

    for line in [line for page in PAGES for line in lines(page) if line.startswith("ray ")]:
        words = line.partition(" -- ")[0].split()[1:]
        command = cli
        while hasattr(command, "commands") and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        assert command is not cli, line
        known = {name for option in command.params for name in option.opts}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, line


def test_paths_and_folders_on_the_pages_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"\b((?:cluster|k8s)/[\w./-]*\w)", page.read_text()):
            assert (ROOT / name).exists(), f"{page}: {name}"


def test_our_variables_on_the_pages_are_read() -> None:
    settings = (ROOT / "platform" / "heliostat" / "config" / "settings.py").read_text()
    named = {name for page in PAGES for name in re.findall(r"HELIOSTAT_[A-Z_]+", page.read_text())}
    assert named
    assert [name for name in named if f'"{name}"' not in settings] == []
