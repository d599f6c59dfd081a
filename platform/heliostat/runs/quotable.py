"""Which measurements of a claim the docs may quote.

`heliostat claim JOB` writes `docs/claims/JOB.json` in a checkout. A run with another config is a
measurement of something else: it must not take that file's place.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from heliostat.config.dump import MAY_DIFFER
from heliostat.config.jobs import find_job
from heliostat.config.load import load_config

FREE = ("parallel",)


def docs_folder(job: str, config: Any, free: Collection[str] = FREE) -> Path | None:
    """`docs/` of the checkout that a claim is measured from, if it may be quoted there."""
    docs = Path("docs")
    return docs if (docs / "claims").is_dir() and is_quotable(job, config, free) else None


def is_quotable(job: str, config: Any, free: Collection[str] = FREE) -> bool:
    """Whether what decides the figures is what the job's own config says, with all its seeds.

    Args:
        job: its name.
        config: of the run; its section `claim` has `seeds`, and may have more of them.
        free: keys of that section that decide nothing.
    """
    default = load_config(find_job(job), None, [], []).config
    for one in fields(config):
        mine, own = getattr(config, one.name), getattr(default, one.name)
        if one.name == "claim":
            if not set(mine.seeds) >= set(own.seeds):
                return False
            mine = replace(mine, **{name: getattr(own, name) for name in (*free, "seeds")})
        if one.name not in MAY_DIFFER and mine != own:
            return False
    return True
