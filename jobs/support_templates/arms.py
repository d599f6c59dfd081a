"""The arms that every result is shown beside: majority ranking and TF-IDF regressions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pyarrow.compute as pc

from heliostat.data.table import Table
from heliostat.runs.run import Run
from heliostat.storage import Location
from jobs.support_templates.baselines import (
    BaselineConfig,
    BaselineScores,
    LabelledTexts,
    majority_ranking,
    tfidf_regression,
)
from jobs.support_templates.config import Config
from jobs.support_templates.contexts import context_text
from jobs.support_templates.evaluation import recent_templates
from jobs.support_templates.pipeline import Conversations, Labelled, measure
from jobs.support_templates.preparation import redacted_case
from jobs.support_templates.run_report import Arm


def classical_arms(
    config: Config,
    run: Run,
    conversations: Conversations,
    labelled: Labelled,
    recent: frozenset[str],
) -> list[Arm]:
    """Train and measure the classical baselines on the same samples as the classifier."""
    classes = len(labelled.label_map)
    train_labels = _labels(labelled.train)
    majority = majority_ranking(
        train_labels, classes=classes, rows=len(labelled.test_rows.template_ids)
    )
    arms = [Arm("majority ranking", measure(majority.scores, labelled, 1.0, recent))]
    for name, last_only in (("TF-IDF, last message", True), ("TF-IDF, full context", False)):
        sides = {
            side: _texts(conversations.redacted, location, last_only)
            for side, location in (
                ("train", labelled.train),
                ("validation", labelled.validation),
                ("test", labelled.test),
            )
        }
        fitted = tfidf_regression(
            name,
            train=LabelledTexts(sides["train"], train_labels),
            validation=LabelledTexts(sides["validation"], _labels(labelled.validation)),
            test_texts=sides["test"],
            classes=classes,
            config=BaselineConfig(),
        )
        arms.append(Arm(name, measure(fitted.scores, labelled, 1.0, recent), _tuned(fitted)))
    return arms


def recent_template_ids(conversations: Conversations) -> frozenset[str]:
    """Templates introduced in the 30 days before the data end."""
    introduced = {key: value.introduced_at for key, value in conversations.templates.items()}
    newest: datetime = pc.max(conversations.redacted.column("started_at")).as_py()
    return frozenset(recent_templates(introduced, as_of=newest))


def _texts(redacted: Table, samples: Location, last_only: bool) -> list[str]:
    """The untruncated redacted context of each sample, in the order of the table."""
    places = [split_id(sample) for sample in Table.open(samples).column("id").to_pylist()]
    rows = {case: row for row, case in enumerate(redacted.column("case_id").to_pylist())}
    needed = sorted({rows[case] for case, _ in places})
    cases = {
        str(row["case_id"]): redacted_case(row)
        for row in redacted.take(np.asarray(needed, dtype=np.int64)).to_pylist()
    }
    return [
        context_text(cases[case].messages[:position], last_message_only=last_only)
        for case, position in places
    ]


def split_id(sample_id: str) -> tuple[str, int]:
    """Case and position of a sample id `CASE#POSITION`."""
    case, _, position = sample_id.rpartition("#")
    return case, int(position)


def _labels(samples: Location) -> np.ndarray:
    labels: Sequence[int] = Table.open(samples).column("label").to_pylist()
    return np.asarray(labels, dtype=np.int64)


def _tuned(fitted: BaselineScores) -> str:
    return f"C = {fitted.chosen.penalty:g}" if fitted.chosen is not None else ""
