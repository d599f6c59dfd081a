"""Openings from a file of real utterances instead of the packaged issues."""

from __future__ import annotations

import csv
import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from heliostat.errors import DataError
from heliostat.storage import Location
from jobs.support_templates.data.sim_config import POOLS, SimConfig
from jobs.support_templates.data.support_sim import simulate, templates
from jobs.support_templates.data.topics import read_seed_utterances, topics

BANKING77 = Path(__file__).parents[4] / "shared" / "data" / "banking77" / "train.csv"

UTTERANCES = [
    (f"{question} number {n}, please?", category)
    for category, question in (
        ("Card_Arrival", "Where is my card"),
        ("exchange rate?", "What rate"),
    )
    for n in range(20)
]


def csv_file(path: Path, rows: list[tuple[str, ...]], header: str = "text,category") -> str:
    with path.open("w", newline="") as file:
        file.write(header + "\n")
        csv.writer(file).writerows(rows)
    return str(path)


def a_config(path: str) -> SimConfig:
    return SimConfig(seed_utterances=path, unlabelled_cases=300, labelled_cases=100, test_cases=100)


def test_categories_replace_issues(tmp_path: Path) -> None:
    config = a_config(csv_file(tmp_path / "seed.csv", list(UTTERANCES)))
    ids = [one.template_id for one in templates(config) if not one.template_id.startswith("gen")]
    assert {one.partition(".")[0] for one in ids} == {"card_arrival", "exchange_rate"}
    assert len(ids) == 4
    bodies = {one.template_id: one.body for one in templates(config)}
    assert "Card arrival" in bodies["card_arrival.status"]
    sent = {one.template_id for case in simulate(config, "unlabelled") for one in case.messages}
    assert sent - {None} == set(bodies)


def test_openings_are_the_texts_as_they_were_written(tmp_path: Path) -> None:
    config = a_config(csv_file(tmp_path / "seed.csv", list(UTTERANCES)))
    texts = {text for text, _ in UTTERANCES}
    for pool in POOLS:
        own = {opening.text for topic in topics(config) for opening in topic.openings[pool]}
        assert own <= texts
        for case in simulate(config, pool):
            content = "\n".join(one.text for one in case.messages if one.role == "customer")
            assert any(text in content for text in own)
            assert not any(text in content for text in texts - own)


def test_texts_that_differ_only_in_form_are_one_opening(tmp_path: Path) -> None:
    variants = [
        (text.upper().replace(",", " "), category) for text, category in UTTERANCES
    ] + UTTERANCES
    config = a_config(csv_file(tmp_path / "seed.csv", list(variants)))
    openings = [o for topic in topics(config) for pool in POOLS for o in topic.openings[pool]]
    assert len(openings) == len(UTTERANCES)


def test_json_gives_the_same_cases_as_csv(tmp_path: Path) -> None:
    (tmp_path / "seed.json").write_text(json.dumps(UTTERANCES))
    from_csv = a_config(csv_file(tmp_path / "seed.csv", list(UTTERANCES)))
    from_json = a_config(str(tmp_path / "seed.json"))
    assert list(simulate(from_json, "test")) == list(simulate(from_csv, "test"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text;category\na;b\n", "line 1: the header is 'text;category'; expected the columns"),
        ("text,category\nhello,\n", "line 2: the category is blank"),
        ("text,category\na,b\n ,c\n", "line 3: the text is blank"),
        ("text,category\na\n", "line 2: the category is blank"),
        ("text,category\n", "holds no utterance"),
        ('[["a", "b"], ["c"]]', "item 2: expected a pair [text, intent]"),
        ('[["a", 3]]', "item 1: the category is blank or no string"),
        ('[["a", "b"]', "line 1: Expecting"),
        ("text,category\na,x\nb,x\nc,x\n", "has one category, 'x'; expected at least two"),
        ("text,category\na,x\nb,x\nc,x\nd,x\ne,y\n", "category 'y' has 1 different texts"),
        (
            "text,category\na,x y\nb,x y\nc,x y\nd,x y\ne,X_Y\nf,X_Y\ng,X_Y\nh,X_Y\n",
            "both become the template id 'x_y'",
        ),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "seed"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        topics(a_config(str(path)))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_absent_file_is_refused() -> None:
    with pytest.raises(DataError, match="does not exist; expected a CSV file with the columns"):
        topics(a_config("nowhere/seed.csv"))


@pytest.mark.skipif(not BANKING77.exists(), reason=f"no BANKING77 at {BANKING77}")
def test_banking77_is_accepted_with_two_labels_for_each_of_its_77_intents() -> None:
    config = SimConfig(seed_utterances=str(BANKING77), unlabelled_cases=1500, test_cases=300)
    assert len(read_seed_utterances(Location.of(BANKING77))) > 10_000
    assert len(topics(config)) == 77
    assert len(templates(config)) == 2 * 77 + 5
    used = {
        pool: {
            opening.text.casefold() for topic in topics(config) for opening in topic.openings[pool]
        }
        for pool in POOLS
    }
    for one, other in combinations(POOLS, 2):
        assert used[one].isdisjoint(used[other])
    counts = Counter(
        one.template_id for case in simulate(config, "unlabelled") for one in case.messages
    )
    assert len(counts) - 1 > 130
