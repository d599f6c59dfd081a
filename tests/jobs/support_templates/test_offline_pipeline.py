"""Simulated cases to samples, label map, baselines and evaluation, as a run does it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from jobs.support_templates.baselines import (
    BaselineConfig,
    LabelledTexts,
    majority_ranking,
    tfidf_regression,
)
from jobs.support_templates.contexts import ContextConfig, Sample, context_text, samples_of
from jobs.support_templates.data.sim_config import Pool, SimConfig
from jobs.support_templates.data.support_sim import simulate
from jobs.support_templates.evaluation import ScoredSamples, evaluate
from jobs.support_templates.label_map import LabelMap, build_label_map
from jobs.support_templates.split import Side, SideRule, check_no_shared_case

SIMULATION = SimConfig(unlabelled_cases=0, labelled_cases=200, validation_cases=30, test_cases=80)
Row = tuple[Sample, str, str]


def encode(texts: Sequence[str]) -> list[list[int]]:
    return [[1 + len(word) for word in text.split()] for text in texts]


def side_in(pool: Pool, case_id: str) -> Side:
    rule = SideRule(pool, "salt", test_share=0.5, validation_share=0.1)
    return rule.side(case_id)  # type: ignore[return-value]


def rows_of(pool: Pool) -> list[Row]:
    """Samples with their full context and its last message as text."""
    skipped: Counter[str] = Counter()
    rows: list[Row] = []
    for case in simulate(SIMULATION, pool):
        for sample in samples_of(
            case,
            side=side_in(pool, case.case_id),
            redactor_version="simulated",
            encode=encode,
            separator=[0],
            config=ContextConfig(max_tokens=64),
            skipped=skipped,
        ):
            before = case.messages[: sample.depth]
            full, last = (context_text(before, last_message_only=only) for only in (False, True))
            rows.append((sample, full, last))
    candidates = sum(
        message.template_id is not None
        for case in simulate(SIMULATION, pool)
        for message in case.messages
    )
    assert len(rows) + skipped.total() == candidates
    return rows


def labelled(rows: Sequence[Row], column: int, label_map: LabelMap) -> LabelledTexts:
    return LabelledTexts(
        texts=[str(row[column]) for row in rows],
        labels=label_map.indices(row[0].template_id for row in rows),
    )


def test_more_context_makes_a_better_baseline_on_simulated_cases() -> None:
    train, validation, test = rows_of("labelled"), rows_of("validation"), rows_of("test")
    check_no_shared_case(
        {
            "train": (row[0].case_id for row in train),
            "validation": (row[0].case_id for row in validation),
            "test": (row[0].case_id for row in test),
        }
    )
    built = build_label_map(
        Counter(row[0].template_id for row in train),
        min_label_count=2,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    label_map = built.label_map
    majority = majority_ranking(
        labelled(train, 1, label_map).labels, classes=len(label_map), rows=len(test)
    )
    regressions = [
        tfidf_regression(
            name,
            train=labelled(train, column, label_map),
            validation=labelled(validation, column, label_map),
            test_texts=labelled(test, column, label_map).texts,
            classes=len(label_map),
            config=BaselineConfig(),
        )
        for name, column in (("last message", 2), ("full context", 1))
    ]
    top5 = []
    for baseline in (majority, *regressions):
        evaluation = evaluate(
            baseline.scores,
            ScoredSamples([row[0].template_id for row in test], [row[0].depth for row in test]),
            label_map,
            temperature=1.0,
            recent=(),
            skipped={},
        )
        assert sum(group.samples for group in evaluation.by_depth) == len(test)
        top5.append(evaluation.overall.top5)
    assert top5[0] + 0.05 < top5[1]
    assert top5[1] + 0.05 < top5[2]
