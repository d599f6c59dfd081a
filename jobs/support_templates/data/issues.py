"""The packaged texts of the simulated chat: issues of a payments app, and what people say.

The texts themselves are in `issues.yaml` and `phrases.yaml` beside this module; here they become
plain values. Nothing is drawn at random here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

Step = Literal["info", "fix", "status"]
FirstStep = Literal["info", "fix"]
FIRST_STEPS: tuple[FirstStep, ...] = ("info", "fix")


@dataclass(frozen=True)
class Issue:
    """One thing that goes wrong with the app; `<noun> <problem>` is a complaint about it."""

    id: str
    """Short name, the stem of its template ids."""
    title: str
    """What it is about, for people."""
    nouns: tuple[str, ...]
    """Phrases in the singular for what is concerned."""
    problems: dict[FirstStep, tuple[str, ...]]
    """Predicates by the first reply that they call for."""
    templates: dict[Step, str]
    """Bodies of its reply templates."""
    introduced_days_before_end: int | None
    """When it came up, in days before the end of the period; None: long before."""
    retired_days_before_end: int | None
    """When it ended, in days before the end of the period; None: it goes on."""


@dataclass(frozen=True)
class Phrases:
    """What people say apart from their issue; curly brackets are fields."""

    carriers: tuple[str, ...]
    """Openings with the fields noun and problem."""
    greetings: tuple[str, ...]
    """Bare greetings."""
    vague: tuple[str, ...]
    """Complaints that name nothing."""
    joined: tuple[str, ...]
    """System messages at the start of a chat."""
    free_text: tuple[str, ...]
    """What advocates write without a template."""
    answers: tuple[str, ...]
    """Details that were asked for, with the fields amount, day, city and order."""
    not_helped: tuple[str, ...]
    """The remedy did not help."""
    not_helped_again: tuple[str, ...]
    """It still does not work."""
    news: tuple[str, ...]
    """Impatience after a status reply."""
    second_issue: tuple[str, ...]
    """Lead-ins of a second issue with the field opening."""
    thanks: tuple[str, ...]
    """Thanks."""
    no_more: tuple[str, ...]
    """Answers to whether there is anything else."""
    days: tuple[str, ...]
    """Values of the field day."""
    cities: tuple[str, ...]
    """Values of the field city."""
    general: dict[str, dict[str, str]]
    """Title and body of the templates that belong to no issue."""
    category: dict[Step, str]
    """Template bodies of a category from a file, with the field topic."""
    personal: dict[str, tuple[str, ...]]
    """Sentences with personal data by kind; the field has the kind's name."""


@cache
def issues() -> tuple[Issue, ...]:
    """The packaged issues, most frequent first."""
    return tuple(
        Issue(
            id=one["id"],
            title=one["title"],
            nouns=tuple(one["nouns"]),
            problems={step: tuple(one["problems"][step]) for step in FIRST_STEPS},
            templates=one["templates"],
            introduced_days_before_end=one.get("introduced_days_before_end"),
            retired_days_before_end=one.get("retired_days_before_end"),
        )
        for one in _load("issues.yaml")
    )


@cache
def phrases() -> Phrases:
    """The packaged phrases."""
    loaded: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in _load("phrases.yaml").items()
    }
    loaded["personal"] = {kind: tuple(texts) for kind, texts in loaded["personal"].items()}
    return Phrases(**loaded)


def _load(name: str) -> Any:
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
