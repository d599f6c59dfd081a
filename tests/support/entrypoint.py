"""A command line of ours, taken through our own parser and config loader without being run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from typer.main import get_command

from heliostat.cli.main import app
from heliostat.config.jobs import find_job
from heliostat.config.load import LoadedConfig, load_config

ROOT = Path(__file__).resolve().parents[2]


def load_entrypoint(line: str) -> LoadedConfig[Any]:
    """The config of `heliostat train JOB KEY=VALUE ... --run NAME`; asks for the name."""
    program, name, *words = shlex.split(line)
    assert (program, name) == ("heliostat", "train")
    arguments = get_command(app).commands[name].make_context(name, words).params
    assert arguments["run"], f"without --run this would start from nothing each time: {line}"
    return load_config(find_job(arguments["job"], ROOT), None, arguments["overrides"] or ())
