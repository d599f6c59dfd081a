"""The label map keeps its order through save and load, and signals when it is out of date."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heliostat.errors import BundleError, DataError
from jobs.support_templates.label_map import (
    OUT_OF_MAP,
    LabelMap,
    build_label_map,
    check_head_width,
    label_map_from_json,
)
from jobs.support_templates.lifecycle import (
    RetrainConfig,
    new_templates,
    out_of_map_rate,
    retrain_signal,
)
from models.metrics import masked_probabilities

NOW = datetime(2026, 3, 1, tzinfo=UTC)
TEMPLATE_IDS = st.sets(st.text(min_size=1, max_size=6), min_size=1, max_size=20)


def label_map_of(*labels: str) -> LabelMap:
    return LabelMap(labels=labels, created_at=NOW)


@given(TEMPLATE_IDS, st.randoms())
def test_order_and_version_survive_save_and_load(ids: set[str], shuffle: random.Random) -> None:
    counted = list(ids)
    shuffle.shuffle(counted)
    built = build_label_map(dict.fromkeys(counted, 10), min_label_count=10, created_at=NOW)
    loaded = label_map_from_json(built.label_map.to_json())
    assert loaded == built.label_map
    assert loaded.label_map_version == built.label_map.label_map_version
    assert list(loaded.labels) == sorted(ids)
    assert [loaded.index(loaded.name(i)) for i in range(len(loaded))] == list(range(len(loaded)))


def test_json_has_the_documented_keys() -> None:
    raw = json.loads(label_map_of("a", "b").to_json())
    assert raw.keys() == {"label_map_version", "created_at", "labels"}
    assert raw["labels"] == ["a", "b"]


def test_version_follows_the_labels_and_not_the_date() -> None:
    later = LabelMap(labels=("a", "b"), created_at=NOW + timedelta(days=9))
    assert later.label_map_version == label_map_of("a", "b").label_map_version
    versions = {label_map_of(*ls).label_map_version for ls in (["a", "b"], ["a"], ["ab"], ["a,b"])}
    assert len(versions) == 4


def test_rare_labels_are_dropped_and_reported() -> None:
    built = build_label_map(
        {"rare": 9, "b": 10, "a": 500, "never": 0}, min_label_count=10, created_at=NOW
    )
    assert built.label_map.labels == ("a", "b")
    assert built.dropped == {"never": 0, "rare": 9}
    with pytest.raises(DataError, match="seen 9 times"):
        build_label_map({"rare": 9}, min_label_count=10, created_at=NOW)


@pytest.mark.parametrize("labels", [["b", "a"], ["a", "a"], []])
def test_unsorted_repeated_or_no_labels_are_refused(labels: list[str]) -> None:
    with pytest.raises(DataError):
        label_map_of(*labels)


def test_an_edited_file_is_refused() -> None:
    raw = json.loads(label_map_of("a", "b").to_json())
    with pytest.raises(BundleError, match="changed after it was frozen"):
        label_map_from_json(json.dumps({**raw, "labels": ["a", "c"]}))
    with pytest.raises(DataError, match="sorted"):
        label_map_from_json(json.dumps({**raw, "labels": ["b", "a"]}))
    for broken in ("[]", "{", json.dumps({"labels": ["a"]}), json.dumps({**raw, "labels": 3})):
        with pytest.raises(BundleError, match="label map"):
            label_map_from_json(broken)


def test_a_head_of_another_width_is_refused() -> None:
    check_head_width(label_map_of("a", "b"), 2)
    with pytest.raises(BundleError, match="3 outputs but label map"):
        check_head_width(label_map_of("a", "b"), 3)


def test_unknown_templates_get_no_index_and_a_hint() -> None:
    label_map = label_map_of("card_declined", "greeting")
    assert label_map.indices(["greeting", "new", "card_declined"]).tolist() == [1, OUT_OF_MAP, 0]
    assert "greeting" in label_map
    assert "new" not in label_map
    with pytest.raises(DataError, match="nearest is 'card_declined'"):
        label_map.index("card_decline")
    with pytest.raises(DataError, match="outside 0 to 1"):
        label_map.name(-1)


@given(
    logits=st.lists(st.floats(-8, 8), min_size=2, max_size=12),
    retired=st.sets(st.integers(0, 11)),
    temperature=st.floats(0.25, 4),
)
def test_retired_templates_are_masked_after_temperature_and_the_rest_renormalised(
    logits: list[float], retired: set[int], temperature: float
) -> None:
    """p'_i = p_i / (1 - sum of retired p), with p = softmax(z / T)."""
    names = [f"t{i:02d}" for i in range(len(logits))]
    gone = {names[i] for i in retired if i < len(names)}
    mask = label_map_of(*names).active_mask(gone | {"retired long ago"})
    assert mask.tolist() == [name not in gone for name in names]
    weights = np.exp((np.array(logits) - max(logits)) / temperature)
    p = weights / weights.sum()
    masked = masked_probabilities(
        torch.tensor([logits], dtype=torch.float64), temperature, torch.as_tensor(mask)
    )[0].numpy()
    assert (masked[~mask] == 0).all()
    if mask.any():
        assert masked[mask] == pytest.approx(p[mask] / p[mask].sum(), rel=1e-9)
    if gone and mask.any() and p[~mask].sum() < 0.99:
        assert masked[mask] == pytest.approx(p[mask] / (1 - p[~mask].sum()), rel=1e-9)


def test_out_of_map_rate_and_new_templates_by_volume() -> None:
    label_map = label_map_of("a", "b")
    chosen = ["a", "z", "y", "a", "y", "x", "b", "b"]
    assert out_of_map_rate(chosen, label_map) == 0.5
    assert new_templates(chosen, label_map) == [("y", 2), ("x", 1), ("z", 1)]
    with pytest.raises(DataError, match="at least one"):
        out_of_map_rate([], label_map)


def signal(outside: int, total: int, top5: float | None) -> tuple[bool, int]:
    """The signal for `outside` of `total` selections out of map, and old ones all outside."""
    recent = [(NOW - timedelta(days=6), "new" if i < outside else "a") for i in range(total)]
    old = [(NOW - timedelta(days=8), "new")] * 100
    answer = retrain_signal(
        [*old, *recent],
        label_map_of("a"),
        now=NOW,
        top5=top5,
        top5_at_release=0.85,
        config=RetrainConfig(),
    )
    assert answer.selections == total
    assert answer.out_of_map_rate == (outside / total if total else None)
    return answer.should_retrain, len(answer.reasons)


def test_retrain_when_over_five_percent_are_out_of_map_in_seven_days() -> None:
    assert signal(5, 100, 0.85) == (False, 0)
    assert signal(6, 100, 0.85) == (True, 1)


def test_retrain_when_top5_falls_three_points_below_release() -> None:
    assert signal(0, 100, 0.821) == (False, 0)
    assert signal(0, 100, 0.82) == (True, 1)
    assert signal(6, 100, 0.70) == (True, 2)


def test_what_is_not_known_asks_for_nothing() -> None:
    assert signal(0, 100, None) == (False, 0)
    assert signal(0, 0, None) == (False, 0)
