"""Versions of the classifier: opened, compared by the names of templates, asked for a ranking."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from support_bundle import write_support_bundle

from heliostat.errors import BundleError, ConfigError
from heliostat.runs.bundle import load_bundle
from jobs.support_templates.bundle import open_classifier
from jobs.support_templates.data.rows import Message
from jobs.support_templates.label_map import LabelMap
from jobs.support_templates.suggest import Scores, SuggestionModel, agreement
from models.metrics import masked_probabilities

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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SuggestionModel:
    folder: Path = tmp_path_factory.mktemp("bundle")
    write_support_bundle(folder / "one", 1)
    return SuggestionModel(load_bundle(str(folder / "one")), None, None)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_ranking_has_the_probabilities_of_the_evaluation(
    model: SuggestionModel, scale: float
) -> None:
    label_map = model.classifier.label_map
    logits = np.random.default_rng(0).normal(size=len(label_map)).astype(np.float32) * scale
    leave_out = label_map.labels[:2]
    everything = model.rank(Scores(logits, label_map)).template_ids
    ranking = model.rank(Scores(logits, label_map), leave_out)
    allowed = np.array([name in everything and name not in leave_out for name in label_map.labels])
    expected = masked_probabilities(
        torch.from_numpy(logits[None]), model.classifier.temperature, torch.from_numpy(allowed)
    )[0]
    assert set(ranking.template_ids) == {
        name for name, may in zip(label_map.labels, allowed, strict=True) if may
    }
    found = dict(zip(ranking.template_ids, ranking.probabilities, strict=True))
    for name, probability in zip(label_map.labels, expected.tolist(), strict=True):
        assert found.get(name, 0.0) == pytest.approx(probability, rel=1e-12, abs=1e-300)
    assert list(ranking.probabilities) == sorted(ranking.probabilities, reverse=True)


def test_nothing_is_ranked_where_nothing_is_allowed(model: SuggestionModel) -> None:
    label_map = model.classifier.label_map
    logits = np.zeros(len(label_map), np.float32)
    assert model.rank(Scores(logits, label_map), label_map.labels).template_ids == ()


def test_a_shorter_window_than_that_of_training_is_served_and_a_longer_than_the_decoder_refused(
    tmp_path: Path,
) -> None:
    write_support_bundle(tmp_path / "one", 1)
    bundle = load_bundle(str(tmp_path / "one"))
    messages = [Message(0, "customer", "where is my card " * 40), Message(1, "customer", "please")]
    found = SuggestionModel(bundle, None, max_tokens=16).read(messages)
    assert found is not None
    assert len(found.window.tokens) <= 16
    with pytest.raises(ConfigError, match="reads 128 tokens at most"):
        SuggestionModel(bundle, None, max_tokens=129)
