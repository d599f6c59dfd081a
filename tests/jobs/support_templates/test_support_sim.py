"""The simulated support chat: its statistics, its flow, its pools, its gold spans."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from heliostat.storage import Location
from jobs.support_templates.data import support_sim
from jobs.support_templates.data.issues import issues, phrases
from jobs.support_templates.data.rows import Case
from jobs.support_templates.data.schema import read_cases, read_templates
from jobs.support_templates.data.sim_config import POOLS, Pool, SimConfig
from jobs.support_templates.data.support_sim import (
    cached_simulation,
    gold_spans,
    simulate,
    simulate_with_spans,
    templates,
    write_simulation,
)
from jobs.support_templates.data.topics import topics
from jobs.support_templates.data.writing import KINDS

CONFIG = SimConfig(seed=7, unlabelled_cases=6000, labelled_cases=300, test_cases=200)
CLEAN = replace(CONFIG, personal_share=0.0, lower_case_share=0.0, typo_share=0.0)


@cache
def cases(config: SimConfig, pool: Pool = "unlabelled") -> tuple[Case, ...]:
    return tuple(simulate(config, pool))


def sent_templates(case: Case) -> list[str]:
    return [one.template_id for one in case.messages if one.template_id is not None]


def share(happened: list[bool]) -> float:
    return mean(happened)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def test_the_labels_are_at_least_75_with_five_general_ones() -> None:
    ids = [template.template_id for template in templates(CONFIG)]
    assert len(ids) == len(set(ids)) == 3 * len(issues()) + 5 >= 75
    assert sum(one.startswith("general.") for one in ids) == 5


def test_every_template_is_sent_and_its_text_is_the_body() -> None:
    bodies = {template.template_id: template.body for template in templates(CONFIG)}
    sent = {
        (one.template_id, one.text) for case in cases(CONFIG) for one in case.messages
        if one.template_id
    }  # fmt: skip
    assert sent == set(bodies.items())


def test_the_flow_has_the_given_probabilities() -> None:
    sent = [sent_templates(case) for case in cases(CLEAN)]
    assert share(["general.greet" in one for one in sent]) == pytest.approx(0.35, abs=0.02)
    assert share(["general.clarify" in one for one in sent]) == pytest.approx(0.1, abs=0.012)
    assert share([one[-1] == "general.close" for one in sent]) == pytest.approx(0.6, abs=0.02)
    assert all(one.count("general.anything_else") == 1 for one in sent)
    handled = [sum(name.endswith((".info", ".fix")) for name in one) for one in sent]
    assert set(handled) == {1, 2}
    assert share([number == 2 for number in handled]) == pytest.approx(0.3, abs=0.02)


def test_each_step_leads_to_the_next_with_the_given_probabilities() -> None:
    following: dict[str, list[str]] = {"info": [], "fix": [], "status": []}
    for case in cases(CLEAN):
        sent = sent_templates(case)
        for name, after in pairwise(sent):
            step = name.rpartition(".")[2]
            if step in following:
                is_same = after == f"{name.rpartition('.')[0]}.status"
                following[step].append("status" if is_same else after)
    assert set(following["info"]) == {"status"}
    helped_not = [after == "status" for after in following["fix"]]
    assert share(helped_not) == pytest.approx(0.5, abs=0.025)
    escalated = [after == "general.escalate" for after in following["status"]]
    assert share(escalated) == pytest.approx(0.4, abs=0.02)


def test_a_second_issue_differs_from_the_first() -> None:
    for case in cases(CLEAN):
        first = [one.partition(".")[0] for one in sent_templates(case)
                 if one.endswith((".info", ".fix"))]  # fmt: skip
        assert len(set(first)) == len(first)


def test_issue_frequencies_follow_the_zipf_law() -> None:
    lasting = [
        (rank, topic.id)
        for rank, topic in enumerate(topics(CLEAN))
        if topic.introduced_at is None and topic.retired_at is None
    ]
    counts = Counter(
        one.partition(".")[0]
        for case in cases(CLEAN)
        for one in sent_templates(case)
        if one.endswith((".info", ".fix"))
    )
    total = sum(counts[name] for _, name in lasting)
    norm = sum((rank + 1) ** -0.7 for rank, _ in lasting)
    for rank, name in lasting:
        assert counts[name] / total == pytest.approx((rank + 1) ** -0.7 / norm, rel=0.3)
    head = sum(counts[name] for _, name in lasting[:8]) / total
    assert head == pytest.approx(sum((r + 1) ** -0.7 for r, _ in lasting[:8]) / norm, rel=0.05)


def test_messages_are_well_formed() -> None:
    for case in cases(CONFIG):
        assert [one.idx for one in case.messages] == list(range(len(case.messages)))
        assert case.started_at == case.messages[0].sent_at
        times = [one.sent_at for one in case.messages]
        assert all(a < b for a, b in pairwise(times))  # type: ignore[operator]
        assert CONFIG.begin <= case.started_at < CONFIG.end
        advocates = {one.advocate_id for one in case.messages if one.role == "advocate"}
        assert len(advocates) == 1
        assert all(one.advocate_id is None for one in case.messages if one.role != "advocate")


def test_cases_are_in_order_of_time_with_tens_of_advocates_and_mostly_american() -> None:
    starts = [case.started_at for case in cases(CONFIG)]
    assert starts == sorted(starts)
    advocates = {one.advocate_id for case in cases(CONFIG) for one in case.messages}
    assert len(advocates - {None}) == CONFIG.advocates
    assert share([case.locale == "en-US" for case in cases(CONFIG)]) == pytest.approx(
        0.92, abs=0.02
    )
    assert len({case.locale for case in cases(CONFIG)}) > 2


def test_some_advocates_write_without_a_template() -> None:
    free = [one.template_id is None for case in cases(CONFIG) for one in case.messages
            if one.role == "advocate"]  # fmt: skip
    assert 0.01 < share(free) < 0.06


def test_lower_case_has_its_share() -> None:
    texts = [one.text for case in cases(replace(CLEAN, lower_case_share=0.6)) for one in
             case.messages if one.role == "customer"]  # fmt: skip
    assert share([text == text.lower() for text in texts]) == pytest.approx(0.6, abs=0.015)
    clean = [one.text for case in cases(CLEAN) for one in case.messages if one.role == "customer"]
    assert share([text == text.lower() for text in clean]) < 0.01


def test_complaints_have_typing_errors_and_other_messages_have_none() -> None:
    """A complaint is what the advocate answers with the first template of an issue."""
    letters, changed = [], []
    for clean, typed in zip(cases(CLEAN), cases(replace(CLEAN, typo_share=0.03)), strict=True):
        complaints = complaint_positions(clean)
        for one, other in zip(clean.messages, typed.messages, strict=True):
            if one.idx in complaints:
                letters.append(sum(map(str.isalpha, one.text)))
                changed.append(one.text != other.text)
            else:
                assert one == other
    expected = mean([1 - 0.97**number for number in letters])
    assert mean(changed) == pytest.approx(expected, abs=0.015)


def complaint_positions(case: Case) -> set[int]:
    positions, last = set(), 0
    for one in case.messages:
        if one.role == "customer":
            last = one.idx
        elif one.template_id is not None and one.template_id.endswith((".info", ".fix")):
            positions.add(last)
    return positions


def test_advocates_make_no_typing_errors() -> None:
    spoken = {one.text for case in cases(CONFIG) for one in case.messages if one.role != "customer"}
    known = {template.body for template in templates(CONFIG)}
    assert spoken <= known | set(phrases().free_text) | set(phrases().joined)


def test_personal_data_are_in_a_fifth_of_customer_messages_and_of_all_kinds() -> None:
    customer = sum(one.role == "customer" for case in cases(CONFIG) for one in case.messages)
    spans = list(gold_spans(CONFIG, "unlabelled"))
    assert len({(span.case_id, span.idx) for span in spans}) / customer == pytest.approx(
        0.2, abs=0.01
    )
    kinds = Counter(span.kind for span in spans)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > len(spans) / len(KINDS) * 0.85


def test_gold_spans_cover_exactly_the_added_values() -> None:
    """The value has the form of its kind and stands in one of the sentences of its kind."""
    forms: dict[str, Callable[[str], bool]] = {
        "EMAIL": lambda value: "@" in value and " " not in value,
        "HANDLE": lambda value: value.startswith("@"),
        "SSN": lambda value: len(value) == 11 and value.count("-") == 2,
        "URL": lambda value: value.startswith("http"),
        "IP": lambda value: value.count(".") == 3 or value.count(":") > 1,
        "CARD": lambda value: value.replace(" ", "").replace("-", "").isdigit(),
        "ACCOUNT": lambda value: value.isdigit(),
        "IBAN": lambda value: value[:2].isupper() and value[2:4].isdigit(),
    }
    frames = {
        kind: [sentence.split(f"{{{kind}}}") for sentence in sentences]
        for kind, sentences in phrases().personal.items()
    }
    config = replace(CONFIG, typo_share=0.0)
    for case, spans in simulate_with_spans(config, "unlabelled"):
        for span in spans:
            text = case.messages[span.idx].text
            value = text[span.start : span.end]
            assert value
            assert value == value.strip()
            assert forms.get(span.kind, bool)(value), (span.kind, value)
            low = text.lower()
            assert any(
                low[: span.start].endswith(before.lower())
                and low[span.end :].startswith(after.lower())
                for before, after in frames[span.kind]
            ), (span.kind, text)


def test_typing_errors_leave_personal_values_whole() -> None:
    """Where every other letter is mistyped, the values are those of a clean run."""

    def values(config: SimConfig) -> list[tuple[str, str]]:
        return [
            (span.kind, case.messages[span.idx].text[span.start : span.end])
            for case, spans in simulate_with_spans(config, "labelled")
            for span in spans
        ]

    clean = replace(CONFIG, lower_case_share=0.0, typo_share=0.0)
    assert values(replace(clean, typo_share=1.0)) == values(clean)
    lowered = values(replace(clean, lower_case_share=1.0))
    assert lowered != values(clean)
    assert [(kind, value.lower()) for kind, value in lowered] == [
        (kind, value.lower()) for kind, value in values(clean)
    ]


def test_without_personal_data_everything_else_stays_the_same() -> None:
    config = replace(CONFIG, personal_share=0.0)
    assert list(gold_spans(config, "labelled")) == []
    touched = {(span.case_id, span.idx) for span in gold_spans(CONFIG, "labelled")}
    for with_data, without in zip(
        cases(CONFIG, "labelled"), cases(config, "labelled"), strict=True
    ):
        assert sent_templates(with_data) == sent_templates(without)
        for one, other in zip(with_data.messages, without.messages, strict=True):
            assert one.sent_at == other.sent_at
            if one.role != "customer":
                assert one.text == other.text
    assert touched


def test_pools_share_neither_cases_nor_openings() -> None:
    for one, other in combinations(POOLS, 2):
        ids = {case.case_id for case in cases(CONFIG, one)}
        assert ids.isdisjoint(case.case_id for case in cases(CONFIG, other))
        for topic in topics(CONFIG):
            assert set(topic.openings[one]).isdisjoint(topic.openings[other])


def test_every_pool_has_openings_for_every_first_reply() -> None:
    for topic in topics(CONFIG):
        sizes = {pool: len(openings) for pool, openings in topic.openings.items()}
        assert sum(sizes.values()) == len({o for all_ in topic.openings.values() for o in all_})
        assert sizes["unlabelled"] > sizes["labelled"] >= sizes["test"] >= sizes["validation"]
        for pool in POOLS:
            assert {opening.first for opening in topic.openings[pool]} == {"info", "fix"}


def test_templates_are_sent_only_between_introduction_and_retirement() -> None:
    known = {template.template_id: template for template in templates(CONFIG)}
    for case in cases(CONFIG):
        for name in sent_templates(case):
            template = known[name]
            assert template.introduced_at is not None
            assert case.started_at >= template.introduced_at
            # A case that began in time may end a little later.
            if template.retired_at is not None:
                assert case.started_at < template.retired_at + timedelta(hours=1)


def test_a_few_templates_are_new_and_a_few_are_retired() -> None:
    made = templates(CONFIG)
    month = CONFIG.end - timedelta(days=30)
    new = [one for one in made if one.introduced_at is not None and one.introduced_at >= month]
    retired = [one for one in made if one.status == "retired"]
    assert 3 <= len(new) <= 10
    assert 1 <= len(retired) <= 10
    assert all(one.retired_at is not None for one in retired)
    assert all(one.retired_at is None for one in made if one.status == "active")
    assert {name for case in cases(CONFIG) for name in sent_templates(case)} >= {
        one.template_id for one in new + retired
    }


def test_another_seed_gives_other_cases_and_the_same_templates() -> None:
    other = replace(CONFIG, seed=8)
    assert cases(other, "test") != cases(CONFIG, "test")
    assert templates(other) == templates(CONFIG)


def test_the_same_seed_gives_the_same_cases_in_every_process() -> None:
    code = (
        "from hashlib import sha256\n"
        "from jobs.support_templates.data.sim_config import SimConfig\n"
        "from jobs.support_templates.data.support_sim import simulate_with_spans, templates\n"
        "config = SimConfig(seed=3, test_cases=60)\n"
        "content = repr((list(simulate_with_spans(config, 'test')), templates(config)))\n"
        "print(sha256(content.encode()).hexdigest())\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(printed) == 1


def test_an_earlier_case_does_not_depend_on_how_many_follow_in_other_pools() -> None:
    more = replace(CONFIG, unlabelled_cases=10, labelled_cases=20)
    assert cases(more, "test") == cases(CONFIG, "test")


def test_the_written_tables_are_valid_and_complete(tmp_path: Path) -> None:
    config = SimConfig(unlabelled_cases=40, labelled_cases=30, validation_cases=5, test_cases=20)
    folder = Location.of(tmp_path)
    assert write_simulation(config, folder) == {
        "unlabelled": 40,
        "labelled": 30,
        "validation": 5,
        "test": 20,
    }
    known = read_templates(folder / "templates.parquet")
    assert tuple(known.values()) == templates(config)
    for pool in POOLS:
        batches = read_cases(folder / f"cases-{pool}.parquet", known.keys())
        assert tuple(case for batch in batches for case in batch) == cases(config, pool)
    spans = pq.read_table(tmp_path / "gold_spans.parquet").to_pylist()
    expected = [span for pool in POOLS for span in gold_spans(config, pool)]
    assert [tuple(span.values()) for span in spans] == [
        (one.case_id, one.idx, one.start, one.end, one.kind) for one in expected
    ]


def test_other_texts_are_another_simulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Location.of(tmp_path)
    small = SimConfig(unlabelled_cases=2, labelled_cases=1, validation_cases=1, test_cases=1)
    kept = cached_simulation(small, cache)
    assert cached_simulation(small, cache) == kept
    assert cached_simulation(replace(small, seed=1), cache) != kept
    reworded = replace(phrases(), greetings=("Ahoy",))
    monkeypatch.setattr(support_sim, "phrases", lambda: reworded)
    assert cached_simulation(small, cache) != kept
