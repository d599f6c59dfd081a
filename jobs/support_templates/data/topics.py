"""What customers of the simulated chat write about, with openings in four disjoint pools.

A topic is a packaged issue or a category from a file of seed utterances. Its openings are dealt to
the pools unlabelled, labelled, validation and test, so that no opening is ever seen on two sides:
for an issue what is dealt are the pairs of noun and problem, so a held-out complaint is new in
substance and not only in dress; for a category, the texts of the file, where texts that differ only
in case, spacing or punctuation count as one.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from random import Random

from heliostat.errors import DataError
from heliostat.storage import Location
from jobs.support_templates.data.issues import (
    FIRST_STEPS,
    FirstStep,
    Issue,
    Step,
    issues,
    phrases,
)
from jobs.support_templates.data.sim_config import POOLS, Pool, SimConfig

_NEW_CATEGORIES = {3: 28, -1: 20}
"""Rank of a category that came up late: days before the end, as among the packaged issues."""
_RETIRED_CATEGORIES = {0.5: 45}
"""Relative rank of a category that ended: days before the end."""


@dataclass(frozen=True)
class Opening:
    """A complaint, before carrier pattern, typing errors and personal data."""

    text: str
    """The whole text, or the problem when there is a noun."""
    noun: str
    """The phrase that fills a carrier pattern with `text`; empty for a text from a file."""
    first: FirstStep
    """The reply that it calls for."""


@dataclass(frozen=True)
class Topic:
    """One thing that customers write about."""

    id: str
    """The stem of its template ids."""
    title: str
    """Its name for people."""
    templates: dict[Step, str]
    """Bodies of its templates."""
    openings: dict[Pool, tuple[Opening, ...]]
    """Its openings in each pool, disjoint."""
    introduced_at: datetime | None
    """Nobody asks before; None: it was always there."""
    retired_at: datetime | None
    """Nobody asks from then on; None: it goes on."""

    def template_id(self, step: Step) -> str:
        """The id of its template for a step."""
        return f"{self.id}.{step}"

    def is_current(self, moment: datetime) -> bool:
        """Whether customers ask about it at that time."""
        is_there = self.introduced_at is None or moment >= self.introduced_at
        return is_there and (self.retired_at is None or moment < self.retired_at)


@lru_cache(maxsize=8)
def topics(config: SimConfig) -> tuple[Topic, ...]:
    """The topics of a simulation, most frequent first."""
    if config.seed_utterances is None:
        return tuple(_issue_topic(issue, config) for issue in issues())
    by_category = _by_category(read_seed_utterances(Location.of(config.seed_utterances)))
    if len(by_category) < 2:
        raise DataError(
            f"{config.seed_utterances} has one category, {next(iter(by_category))!r}; "
            "expected at least two"
        )
    ranked = sorted(by_category, key=lambda name: (-len(by_category[name]), name))
    introduced = {rank % len(ranked): days for rank, days in _NEW_CATEGORIES.items()}
    retired = {int(rank * len(ranked)): days for rank, days in _RETIRED_CATEGORIES.items()}
    made = tuple(
        _category_topic(
            name,
            by_category[name],
            config,
            _days_before(config, introduced.get(rank) if len(ranked) >= 10 else None),
            _days_before(config, retired.get(rank) if len(ranked) >= 10 else None),
        )
        for rank, name in enumerate(ranked)
    )
    _check_ids(ranked, made, config.seed_utterances)
    return made


def read_seed_utterances(location: Location) -> list[tuple[str, str]]:
    """Pairs of text and category from a CSV file `text,category` or a JSON list of pairs."""
    if not location.exists():
        raise DataError(
            f"seed_utterances {location.uri} does not exist; expected a CSV file with the columns "
            "text,category or a JSON list of [text, intent]"
        )
    try:
        content = location.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{location.uri} is not UTF-8 text: {error.reason}") from error
    if content.lstrip().startswith("["):
        pairs = _json_pairs(content, location.uri)
    else:
        pairs = _csv_pairs(content, location.uri)
    if not pairs:
        raise DataError(f"{location.uri} holds no utterance; expected at least four a category")
    return pairs


def _csv_pairs(content: str, file: str) -> list[tuple[str, str]]:
    reader = csv.DictReader(io.StringIO(content), strict=True)
    header = list(reader.fieldnames or [])
    if not {"text", "category"} <= set(header):
        raise DataError(
            f"{file}, line 1: the header is {','.join(header)!r}; "
            "expected the columns text,category"
        )
    pairs: list[tuple[str, str]] = []
    try:
        for row in reader:
            pairs.append(_pair(row["text"], row["category"], f"{file}, line {reader.line_num}"))
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: {error}") from error
    return pairs


def _json_pairs(content: str, file: str) -> list[tuple[str, str]]:
    try:
        rows = json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {error.lineno}: {error.msg}; expected JSON") from error
    pairs: list[tuple[str, str]] = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, list) or len(row) != 2:
            raise DataError(f"{file}, item {number}: expected a pair [text, intent]")
        pairs.append(_pair(row[0], row[1], f"{file}, item {number}"))
    return pairs


def _pair(text: object, category: object, where: str) -> tuple[str, str]:
    for name, value in (("text", text), ("category", category)):
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: the {name} is blank or no string; expected words")
    return " ".join(str(text).split()), str(category).strip()


def _by_category(pairs: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Texts by category; of texts that differ only in form the first in the file stays."""
    seen: set[str] = set()
    grouped: defaultdict[str, list[str]] = defaultdict(list)
    for text, category in pairs:
        form = " ".join(re.findall(r"\w+", text.casefold()))
        if form not in seen:
            seen.add(form)
            grouped[category].append(text)
    return dict(grouped)


def _issue_topic(issue: Issue, config: SimConfig) -> Topic:
    dealt: dict[Pool, tuple[Opening, ...]] = dict.fromkeys(POOLS, ())
    for first in FIRST_STEPS:
        pairs = [
            Opening(text=problem, noun=noun, first=first)
            for noun in issue.nouns
            for problem in issue.problems[first]
        ]
        for pool, share in _deal(pairs, f"{issue.id}.{first}", config).items():
            dealt[pool] += share
    return Topic(
        id=issue.id,
        title=issue.title,
        templates=issue.templates,
        openings=dealt,
        introduced_at=_days_before(config, issue.introduced_days_before_end),
        retired_at=_days_before(config, issue.retired_days_before_end),
    )


def _category_topic(
    name: str,
    texts: list[str],
    config: SimConfig,
    introduced_at: datetime | None,
    retired_at: datetime | None,
) -> Topic:
    words = " ".join(re.findall(r"[^\W_]+", name))
    # Whether a category is asked about or explained is a property of its name: it must not change
    # with the seed or with the other categories of the file.
    first = FIRST_STEPS[Random(f"first reply of {name}").randrange(2)]
    dealt = _deal([Opening(text=text, noun="", first=first) for text in texts], name, config)
    bodies = phrases().category
    return Topic(
        id=re.sub(r"\W+", "_", name.lower()).strip("_"),
        title=words.capitalize(),
        templates={
            step: bodies[step].format(topic=words.capitalize()) for step in (first, "status")
        },
        openings=dealt,
        introduced_at=introduced_at,
        retired_at=retired_at,
    )


def _deal(openings: list[Opening], name: str, config: SimConfig) -> dict[Pool, tuple[Opening, ...]]:
    """Deal openings to the pools by the configured shares, at least one to each."""
    if len(openings) < len(POOLS):
        raise DataError(
            f"{config.seed_utterances}: category {name!r} has {len(openings)} different texts; "
            f"expected at least {len(POOLS)}, one for each of the pools {', '.join(POOLS)}"
        )
    shuffled = list(openings)
    Random(f"{config.seed}/pools/{name}").shuffle(shuffled)
    shares: dict[Pool, float] = {
        "labelled": config.labelled_openings_share,
        "validation": config.validation_openings_share,
        "test": config.test_openings_share,
    }
    dealt: dict[Pool, tuple[Opening, ...]] = {}
    for place, (pool, share) in enumerate(shares.items()):
        # The pools that come after, the unlabelled one among them, each need one.
        most = len(shuffled) - (len(shares) - place)
        count = min(max(1, round(len(openings) * share)), most)
        dealt[pool], shuffled = tuple(shuffled[:count]), shuffled[count:]
    return {**dealt, "unlabelled": tuple(shuffled)}


def _days_before(config: SimConfig, days: int | None) -> datetime | None:
    return None if days is None else config.end - timedelta(days=days)


def _check_ids(names: list[str], made: tuple[Topic, ...], file: str) -> None:
    first_with: dict[str, str] = {}
    for name, topic in zip(names, made, strict=True):
        if not topic.id:
            raise DataError(f"{file}: category {name!r} has no letters to make a template id from")
        if topic.id in first_with:
            raise DataError(
                f"{file}: categories {first_with[topic.id]!r} and {name!r} both become the "
                f"template id {topic.id!r}; expected names that differ in letters or digits"
            )
        first_with[topic.id] = name
