"""Every command that the documentation shows is one that the command line takes as it stands.

Those in `bash` blocks are run (`test_documentation.py`); the others need a bundle, a cluster or
hours. Here their words are read as the command itself reads them: subcommand, options and, where a
job is named, the keys and values of its config. A training or a sweep that is shown to be refused
must be.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from heliostat.cli.main import app
from heliostat.cli.serve import split_words
from heliostat.cli.sweep import kind_of, read_plan
from heliostat.config.jobs import find_job
from heliostat.config.load import load_config
from heliostat.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".", "benchmarks", "cluster", "k8s")
PAGES = [
    *(ROOT / folder / "README.md" for folder in FOLDERS),
    *sorted((ROOT / "docs").glob("*.md")),
]
REFUSED = "heliostat: "
"""Begins the sentence in which a command refuses what it was given."""


@dataclass(frozen=True)
class Shown:
    page: str
    command: str
    answer: str
    """What is shown to be printed; empty where nothing is."""


def shown() -> list[Shown]:
    return [one for page in PAGES for one in _of(page)]


def _of(page: Path) -> Iterator[Shown]:
    for block in re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines()
        for place, line in enumerate(lines):
            found = re.search(r"^\s*(?:\$ )?(?:ray job submit .* -- +)?(heliostat [a-z].*)$", line)
            if found is None:
                continue
            rest = [other.strip() for other in lines[place + 1 :]]
            answer = rest[0] if rest and not rest[0].startswith(("$", "heliostat ")) else ""
            yield Shown(page.name, found[1].split(" #")[0].strip(), answer)


def parsed(command: str) -> tuple[list[str], dict[str, Any]]:
    """The subcommand's path and its parameters; raises what the command line raises."""
    found: Any = get_command(app)
    words = [word for word in shlex.split(command)[1:] if word != "--help"]
    context = found.make_context("heliostat", words, resilient_parsing="--help" in command)
    path: list[str] = []
    while hasattr(found, "resolve_command"):
        words = [*getattr(context, "_protected_args", ()), *context.args]
        name, found, rest = found.resolve_command(context, words)
        path.append(str(name))
        context = found.make_context(
            name, rest, parent=context, resilient_parsing="--help" in command
        )
    return path, dict(context.params)


def read(command: str) -> None:
    """Read a command as far as it goes without doing anything."""
    path, given = parsed(command)
    words = list(given.get("overrides") or [])
    if path[0] == "serve" and "words" in given:
        words, _ = split_words(given["words"])
    if given.get("job") is None or path[0] == "models":
        return
    job = find_job(given["job"])
    if path == ["sweep"]:
        kind_of(job, read_plan(job, words, ()))
    else:
        load_config(job, None, words, ())


def test_there_are_many() -> None:
    assert len(shown()) > 60


@pytest.mark.parametrize("one", shown(), ids=lambda one: f"{one.page}: {one.command[:60]}")
def test_a_shown_command_is_taken(one: Shown) -> None:
    if one.answer.startswith(REFUSED) and one.command.split()[1] in ("train", "sweep"):
        with pytest.raises(UserError):
            read(one.command)
    else:
        read(one.command)
