"""Reports: one page that needs nothing but itself, and figures that say what they measured."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from heliostat.runs.calibration import plot_reliability, reliability
from heliostat.runs.inputs import Input
from heliostat.runs.plots import (
    AxisLabels,
    Curve,
    fit_line,
    plot_bars,
    plot_scaling,
    running_mean,
)
from heliostat.runs.report import Report
from heliostat.runs.run_plots import standard_plots
from heliostat.runs.series import Series
from heliostat.storage import Location

INPUTS = [
    Input("BANKING77", "real", "queries", "CC BY 4.0"),
    Input("support_sim", "generated", "cases", "Apache-2.0"),
]


class Resources(HTMLParser):
    """Everything that a browser would fetch for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data") or (tag == "link" and name == "href"):
                self.sources.append(value or "")


def series(values: list[float]) -> Series:
    made = Series()
    for step, value in enumerate(values, start=1):
        made.add(step=step, value=value, at=0.0, attempt=1)
    return made


def full_report() -> Report:
    report = Report("A <title> & more", subtitle="run one", inputs=INPUTS)
    report.facts({"top-1": 0.8444444, "parameters": 729_000})
    report.heading("Training")
    report.text("5 < 6 & <script>alert(1)</script>")
    report.standard_plots(
        {
            "dapt": {
                "loss": series([5.0 - n / 40 for n in range(60)]),
                "eval/loss": series([4.0, 3.0, 2.5]),
                "lr": series([1e-3] * 60),
                "tokens_per_s": series([12_000.0] * 60),
                "flops_per_s": series([1e9] * 60),
                "eval/top1": series([0.3, 0.5, 0.6]),
            }
        }
    )
    report.heading("Training")
    report.table(["arm", "top-1", "note"], [["a", 0.123456, None], ["b", math.nan, "x"]])
    report.markdown("**bold** ![spy](https://example.com/spy.png) <img src='https://x.y/z.png'>")
    report.code("seed: 0", "Config")
    return report


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = full_report().write(Location.of(tmp_path / "report"))
    text = page.read_text()
    found = Resources()
    found.feed(text)
    images = [source for source in found.sources if source.startswith("data:image/png;base64,")]
    assert len(images) == 4
    assert all(source.startswith("data:") for source in found.sources)
    assert "script" not in found.tags
    assert not re.search(r"url\(|@import", text)
    files = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert files == [
        "01-loss.png",
        "02-learning-rate.png",
        "03-throughput.png",
        "04-evaluation.png",
        "index.html",
    ]


def test_text_from_outside_cannot_become_markup() -> None:
    text = full_report().render()
    assert "<script>alert" not in text
    assert "<title>A &lt;title&gt; &amp; more</title>" in text
    assert "<strong>bold</strong>" in text


def test_figures_are_shown_with_four_digits_and_gaps_as_dashes() -> None:
    text = full_report().render()
    assert "0.8444" in text
    assert "0.84444" not in text
    assert "729\u2009000" in text
    assert "<td>–</td>" in text
    assert "n/a" in text


def test_sections_of_one_name_have_anchors_of_their_own() -> None:
    text = full_report().render()
    anchors = re.findall(r'<h2 id="([^"]+)"', text)
    assert anchors == ["training", "training-2", "inputs"]


def test_the_inputs_are_listed_as_real_or_generated() -> None:
    text = full_report().render()
    assert re.search(r"BANKING77</td><td><span class=\"origin real\">real", text)
    assert re.search(r"support_sim</td><td><span class=\"origin generated\">generated", text)


def test_a_report_without_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match="lists its inputs"):
        Report("t", subtitle="s", inputs=[])


def test_a_row_of_the_wrong_length_and_a_figure_that_is_no_png_are_refused() -> None:
    report = Report("t", subtitle="s", inputs=INPUTS)
    with pytest.raises(ValueError, match="row of 1 cells in a table of 2"):
        report.table(["a", "b"], [[1]])
    with pytest.raises(ValueError, match="no PNG"):
        report.figure(b"GIF89a", "caption", "name")


def test_only_figures_for_which_there_are_metrics_are_drawn() -> None:
    assert standard_plots({}) == []
    assert standard_plots({"s": {"grad_norm": series([1.0])}}) == []
    (plot,) = standard_plots({f"s{n}": {"loss": series([2.0, 1.0])} for n in range(14)})
    assert plot.name == "loss"
    assert "2 more stages" in plot.caption


def test_figures_survive_odd_values() -> None:
    (plot,) = standard_plots({"s": {"loss": series([math.nan, math.inf, 1.0] * 10)}})
    assert plot.png.startswith(b"\x89PNG")
    for arms in ({"a": {"x": [1.0]}}, {"a": {"x": [0.1, 0.2]}, "b": {"y": [3.0]}}):
        assert plot_bars(arms, "Bars", "value").startswith(b"\x89PNG")


def test_the_same_figure_gives_the_same_bytes() -> None:
    arms = {"a": {"x": [1.0, 2.0]}}
    assert plot_bars(arms, "Bars", "value") == plot_bars(arms, "Bars", "value")


def test_the_running_mean_follows_a_line_without_lag() -> None:
    line = np.linspace(5.0, 1.0, 401)
    smooth = running_mean(line)
    assert np.allclose(smooth[50:-50], line[50:-50], atol=1e-9)
    assert np.isfinite(running_mean([math.nan, 1.0, 1.0])[1:]).all()


def test_the_line_is_that_of_least_squares() -> None:
    x = [0.40, 0.42, 0.45, 0.50, 0.55]
    y = [1.75, 1.83, 2.02, 2.20, 2.50]
    fit = fit_line(x, y)
    slope, intercept = np.polyfit(x, y, 1)
    assert fit.slope == pytest.approx(slope, rel=1e-9)
    assert fit.intercept == pytest.approx(intercept, rel=1e-9)
    assert fit.correlation == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-9)
    png, drawn = plot_scaling({"a": Curve(x, y)}, "Scaling", AxisLabels("x", "y"))
    assert drawn == fit
    assert png.startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="two different places"):
        fit_line([1.0, 1.0], [1.0, 2.0])


def test_the_calibration_error_of_the_worked_example() -> None:
    found = reliability([0.95, 0.95, 0.55, 0.55], [True, True, True, False], bins=15)
    assert found.error == pytest.approx(0.05, abs=1e-12)
    assert plot_reliability({"model": found}, "Reliability").startswith(b"\x89PNG")


def test_the_calibration_error_agrees_with_a_slow_loop() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.0, 1.0, 500)
    correct = generator.uniform(size=500) < confidence**2
    expected = 0.0
    for index in range(15):
        inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    found = reliability(confidence.tolist(), correct.tolist())
    assert found.error == pytest.approx(expected, abs=1e-12)


def test_a_confidence_of_one_falls_into_the_last_bin_and_of_zero_into_the_first() -> None:
    assert reliability([1.0, 0.0], [True, False]).counts.tolist() == [1, *[0] * 13, 1]
