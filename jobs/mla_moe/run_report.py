"""The report of a run: loss by term, how busy every expert was, what a token costs to cache."""

from __future__ import annotations

import re
from collections.abc import Sequence

from heliostat.runs.inputs import Input
from heliostat.runs.plots import AxisLabels, Curve, HeatMap, Panels, plot_heat_maps, plot_panels
from heliostat.runs.report import Report
from heliostat.runs.run import Run
from heliostat.storage import Location
from jobs.mla_moe.config import Config
from jobs.mla_moe.pipeline import Trained
from models.counting import active_count, cached_numbers, parameter_count
from models.decoder_config import DecoderConfig

Row = tuple[str | int | float | None, ...]
History = Sequence[dict[str, float]]

_LOAD = re.compile(r"load/(\d+)/(\d+)")
_VIOLATION = re.compile(r"max_violation/(\d+)")


def result_table(config: Config, trained: Trained) -> tuple[tuple[str, ...], list[Row]]:
    """Header and rows of the result table."""
    found, decoder = trained.evaluation, trained.task.decoder
    return ("", "value"), [
        ("loss, nats a token", round(found.loss, 4)),
        ("bits a token", round(found.metrics()["bits_per_token"], 4)),
        ("MaxVio over the test side, worst layer", round(found.max_violation, 3)),
        ("groups that a token is sent to", round(found.metrics()["groups_per_token"], 3)),
        ("cache, bytes a token in float32", found.cache_bytes_per_token),
        ("parameters", parameter_count(decoder)),
        ("parameters that a token meets", _active(decoder)),
    ]


def write_report(config: Config, run: Run, trained: Trained, inputs: Sequence[Input]) -> Location:
    """Write the page and its figures; returns where the page is."""
    found, decoder, history = trained.evaluation, trained.task.decoder, trained.result.history()
    report = Report(
        "A language model with latent attention and a mixture of experts",
        subtitle=f"mla_moe, run {run.id}",
        inputs=inputs,
    )
    report.facts(
        {
            "loss, nats a token": f"{found.loss:.3f}",
            "MaxVio": f"{found.max_violation:.2f}",
            "cache, bytes a token": found.cache_bytes_per_token,
            "test tokens": found.tokens,
        }
    )
    report.heading("Result")
    report.table(*result_table(config, trained), caption="Measured on the test side.")
    report.heading("Loss by term")
    report.text(
        "The loss is the mean cross entropy of the next token and, where they have a factor, the "
        "balance losses, added over layers."
    )
    report.figure(plot_terms(history), "Every term of the loss over the training.", "loss-terms")
    report.heading("Balance of the experts")
    if any(_LOAD.fullmatch(name) for name in _names(history)):
        report.figure(
            plot_loads(history),
            "Load of every expert by layer, relative to the mean; white is an even load.",
            "expert-load",
        )
    report.figure(
        plot_violations(history),
        "MaxVio of every training batch: the load of the busiest expert above the mean.",
        "max-violation",
    )
    report.table(
        ("layer of experts", "MaxVio", "least busy expert", "busiest expert", "groups a token"),
        [
            (layer, violation, min(load) / _mean(load), max(load) / _mean(load), groups)
            for layer, (violation, load, groups) in enumerate(
                zip(found.max_violations, found.load, found.groups_per_token, strict=True)
            )
        ],
        caption="Over the whole test side; loads relative to the mean.",
    )
    report.heading("Cache")
    report.text(cache_sentence(decoder, found.cache_bytes_per_token))
    report.heading("Training")
    report.text(flops_sentence(decoder, trained.task.length))
    report.standard_plots(run.series())
    report.heading("Configuration")
    report.code((run.folder / "config.yaml").read_text(), "The resolved config")
    return report.write(run.artefact("report"))


def plot_terms(history: History) -> bytes:
    """One panel for each term of the loss."""
    names = [name for name in _names(history) if name.startswith("loss/")] or ["loss"]
    panels = {
        name.removeprefix("loss/").replace("_", " "): {name: _curve(history, name, is_noisy=True)}
        for name in names
    }
    return plot_panels(Panels(AxisLabels("step", "loss"), panels), "Loss by term")


def plot_violations(history: History) -> bytes:
    """MaxVio of every layer over the steps."""
    names = [name for name in _names(history) if _VIOLATION.fullmatch(name)]
    curves = {
        f"layer {name.rpartition('/')[2]}": _curve(history, name, is_noisy=True) for name in names
    }
    labels = AxisLabels("step", "MaxVio of a batch", from_zero=True)
    return plot_panels(Panels(labels, {"MaxVio": curves}), "Imbalance over the training")


def plot_loads(history: History) -> bytes:
    """A map of the loads of every layer."""
    rows = [row for row in history if any(_LOAD.fullmatch(name) for name in row)]
    found = [match for name in rows[0] if (match := _LOAD.fullmatch(name))]
    layers = sorted({int(match.group(1)) for match in found})
    experts = sorted({int(match.group(2)) for match in found})
    steps = [row["step"] for row in rows]
    maps = {
        f"layer of experts {layer}": HeatMap(
            x=[steps[0], steps[-1] + 1],
            values=[[row[f"load/{layer}/{expert}"] for row in rows] for expert in experts],
        )
        for layer in layers
    }
    return plot_heat_maps(
        maps,
        "Load of every expert",
        AxisLabels("step", "expert"),
        "load by mean load",
        middle=1.0,
    )


def cache_sentence(decoder: DecoderConfig, measured_bytes: int) -> str:
    """What a token costs to cache, and what plain heads would cost."""
    plain = 2 * decoder.layers * decoder.heads * decoder.head_width * 4
    share = measured_bytes / plain
    return (
        f"A token takes {measured_bytes} bytes in a live cache of float32, "
        f"{cached_numbers(decoder)} numbers over {decoder.layers} layers; keys and values of "
        f"{decoder.heads} heads of {decoder.head_width} would take {plain} bytes ({share:.1%} of "
        "them are needed here)."
    )


def flops_sentence(decoder: DecoderConfig, length: int) -> str:
    """The formula behind the rates of the training."""
    return (
        "Operations of a token, forward and backward, are counted as 6 N + 3 l h n (d_n + d_R + "
        f"d_v) with N = {_active(decoder) - decoder.vocab_size * decoder.width:,} parameters that "
        "a token meets, the output embedding included and the input embedding not, l = "
        f"{decoder.layers}, h = {decoder.heads}, n = {length}: causal attention, no recomputation."
    )


def _active(decoder: DecoderConfig) -> int:
    return active_count(decoder) + 2 * decoder.vocab_size * decoder.width


def _names(history: History) -> list[str]:
    return list(dict.fromkeys(name for row in history for name in row))


def _curve(history: History, name: str, *, is_noisy: bool) -> Curve:
    rows = [row for row in history if name in row]
    return Curve([row["step"] for row in rows], [row[name] for row in rows], is_noisy=is_noisy)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) or 1.0
