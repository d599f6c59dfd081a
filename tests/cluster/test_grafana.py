"""The dashboards ask for metrics that exist, by names that Prometheus sees."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "cluster" / "grafana").glob("*.json"))
SUFFIXES = ("_total", "_bucket", "_sum", "_count", "")


def published() -> set[str]:
    """Every metric that the platform makes, with what Ray and Prometheus add to its name."""
    code = "".join(
        (ROOT / "platform" / "heliostat" / place).read_text()
        for place in ("serve/telemetry.py", "train/telemetry.py")
    )
    names = re.findall(r'"(heliostat_\w+)"', code)
    return {f"ray_{name}{suffix}" for name in names for suffix in SUFFIXES}


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.name)
def test_every_panel_asks_for_metrics_that_exist(file: Path) -> None:
    dashboard = json.loads(file.read_text())
    known = published()
    assert known
    for panel in dashboard["panels"]:
        asked = [name for one in panel["targets"] for name in re.findall(r"ray_\w+", one["expr"])]
        assert asked, panel["title"]
        assert set(asked) <= known, panel["title"]


def test_there_is_a_dashboard_for_endpoints() -> None:
    assert "serving.json" in [file.name for file in DASHBOARDS]
