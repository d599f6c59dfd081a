"""Shell completion of job names, sizes, config keys and their choices; silent about errors."""

from __future__ import annotations

from collections.abc import Callable

import typer

from heliostat.config.explain import field_table
from heliostat.config.jobs import JobEntry, find_job, find_jobs
from heliostat.config.lines import dotted
from heliostat.config.load import LAPTOP
from heliostat.config.schema import Choice, Nullable, Scalar, Section, Shape, spell, walk
from heliostat.errors import HeliostatError

Completions = list[tuple[str, str]]
"""What may be typed, and a help text for shells that show one."""


def complete_job(incomplete: str) -> Completions:
    """Job names."""
    return _quietly(
        lambda: [
            (name, entry.summary)
            for name, entry in find_jobs().items()
            if name.startswith(incomplete)
        ]
    )


def complete_override(ctx: typer.Context, incomplete: str) -> Completions:
    """`size=NAME`, `key=`, and after the equals sign the choices that the key has."""
    name = ctx.params.get("job")
    if not isinstance(name, str):
        return []
    return _quietly(lambda: _overrides(find_job(name), incomplete))


def _overrides(job: JobEntry, incomplete: str) -> Completions:
    key, equals, _ = incomplete.partition("=")
    if key == "size" and equals:
        offers = [(f"size={size}", "") for size in (LAPTOP, *job.sizes())]
    elif key == "sweep" and equals:
        offers = [(f"sweep={name}", "") for name in job.sweeps()]
    elif equals:
        shapes = {dotted(path): shape for path, shape in walk(Section(job.config_class()), {})}
        choices = _choices(shapes[key]) if key in shapes else []
        offers = [(f"{key}={choice}", "") for choice in choices]
    else:
        rows = field_table(job.config_class())
        offers = [(f"{row.key}=", row.doc) for row in rows if row.type != "section"]
        offers.insert(0, ("size=", "Overlay in the job's sizes/."))
        if job.sweeps():
            offers.insert(1, ("sweep=", "For `heliostat sweep`: a file in the job's sweeps/."))
    return [offer for offer in offers if offer[0].startswith(incomplete)]


def _choices(shape: Shape) -> list[str]:
    if isinstance(shape, Nullable):
        return [*_choices(shape.inner), "null"]
    if isinstance(shape, Choice):
        return [spell(written) for written, _ in shape.values]
    return ["true", "false"] if shape == Scalar(bool) else []


def _quietly(offer: Callable[[], Completions]) -> Completions:
    """A broken job must not print into the line that is being typed."""
    try:
        return offer()
    except (HeliostatError, ImportError):
        return []
