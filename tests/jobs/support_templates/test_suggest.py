"""Versions of the classifier: opened, and compared by the names of templates."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from support_bundle import write_support_bundle

from heliostat.errors import BundleError
from heliostat.runs.bundle import load_bundle
from jobs.support_templates.bundle import open_classifier
from jobs.support_templates.label_map import LabelMap
from jobs.support_templates.suggest import Scores, agreement

MADE = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_bundle_of_another_version_of_heliostat_is_refused_in_a_sentence(tmp_path: Path) -> None:
    write_support_bundle(tmp_path / "one", 1, context_more={"no_longer_known": True})
    with pytest.raises(BundleError, match=r"another version of Heliostat .*no_longer_known"):
        open_classifier(load_bundle(str(tmp_path / "one")))


def scores(**logits: float) -> Scores:
    names = sorted(logits)
    values = np.array([logits[name] for name in names], dtype=np.float32)
    return Scores(values, LabelMap(tuple(names), MADE))


def test_versions_with_other_labels_agree_on_the_templates_that_both_name() -> None:
    old = scores(a=9, b=8, c=7, d=6, e=5, f=4, g=3)
    new = scores(aa=0, b=8, c=7, d=6, e=5, f=9, g=3, zz=1)
    assert agreement(old, old) == 1.0
    assert agreement(old, new) == pytest.approx(4 / 5)
    assert agreement(new, old) == pytest.approx(4 / 5)
    assert agreement(old, scores(v=1, w=2, x=3, y=4, z=5)) == 0.0


def test_ties_go_to_the_lower_label() -> None:
    assert scores(a=1, b=1, c=1, d=2).best(2) == {"d", "a"}
