"""What the claim must show, with thresholds fixed before anything was measured, but for the three
criteria that say so.

Letters are those of the acceptance. A figure is a mean over the seeds unless it says otherwise;
losses are nats a token on the test side.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from heliostat.runs.claim import Criterion, Measurement
from jobs.mla_moe import arms
from jobs.mla_moe.config import Config

Mean = Callable[[str, str], float]
EXPORT = "export"


@dataclass(frozen=True)
class Tuned:
    """The widths of latent and rotary key that are best on some seeds, to be judged on others."""

    arm: str
    judged_on: tuple[int, ...]


def best_widths(config: Config, figures: Sequence[Measurement]) -> Tuned | None:
    """The point of the curve with the lowest loss; None where no seed is left to judge it on."""
    settings = config.claim
    chosen_on, judged_on = (
        settings.seeds[: settings.curve_seeds],
        settings.seeds[settings.curve_seeds :],
    )
    if not chosen_on or not judged_on:
        return None
    points = [arms.METHOD, *(arm.name for arm in arms.curve(config, chosen_on[0]))]

    def loss(arm: str) -> float:
        return statistics.fmean(
            item.figures["loss_nats"]
            for item in figures
            if item.arm == arm and item.seed in chosen_on
        )

    return Tuned(min(points, key=loss), tuple(judged_on))


def criteria(figures: Sequence[Measurement], tuned: Tuned | None) -> list[Criterion]:
    """Every criterion with its measured value."""

    def mean(arm: str, figure: str) -> float:
        return statistics.fmean(item.figures[figure] for item in figures if item.arm == arm)

    def worst(prefix: str, figure: str) -> float:
        return max(item.figures[figure] for item in figures if item.arm.startswith(prefix))

    return [
        *_attention(mean),
        *([] if tuned is None else [_tuned_attention(tuned, figures)]),
        *_experts(mean),
        *_balance(mean),
        *_groups(mean, worst),
        *_dropping(mean),
        Criterion(
            "F-trajectory",
            "largest difference of a step's loss between one process and two, experts shared or "
            "not, ZeRO 0 to 2",
            worst(f"{arms.SHARDED}, ", "largest_loss_difference"),
            "<=",
            1e-4,
        ),
        # Added after the first seed had shown that the criterion above is missed, to tell why.
        Criterion(
            "F-arithmetic",
            "the same where every token meets every expert, so that no choice hangs on a rounding",
            worst(f"{arms.WITHOUT_CHOICE}, ", "largest_loss_difference"),
            "<=",
            1e-4,
        ),
        Criterion(
            "G-export",
            "largest difference of a logit between ours and transformers, written and read, both "
            "gates, YaRN on and off",
            worst(EXPORT, "largest_logit_difference"),
            "<=",
            2e-5,
        ),
        # Added after the first seed had shown logits of 22, of which float32 keeps seven digits.
        Criterion(
            "G-share",
            "the same as a share of the largest logit",
            max(
                item.figures["largest_logit_difference"] / max(1.0, item.figures["largest_logit"])
                for item in figures
                if item.arm.startswith(EXPORT)
            ),
            "<=",
            2e-5,
        ),
    ]


def _attention(mean: Mean) -> list[Criterion]:
    latent = mean(arms.METHOD, "loss_nats")
    parameters = mean(arms.METHOD, "parameters")
    off = max(
        abs(mean(arm, "parameters") / parameters - 1) for arm in (arms.MHA, arms.GQA, arms.MQA)
    )
    share = mean(arms.METHOD, "cache_bytes_per_token") / mean(arms.MHA, "cache_bytes_per_token")
    return [
        Criterion(
            "A-multi-head",
            "loss of latent attention above that of multi-head attention",
            latent - mean(arms.MHA, "loss_nats"),
            "<=",
            0.03,
        ),
        Criterion(
            "A-multi-query",
            "loss of latent attention above that of multi-query attention",
            latent - mean(arms.MQA, "loss_nats"),
            "<=",
            -0.005,
        ),
        Criterion(
            "A-cache",
            "bytes of a live latent cache by those of keys and values of all heads",
            share,
            "<=",
            0.4375,
        ),
        Criterion("A-parameters", "largest difference in parameters", off, "<=", 0.03),
    ]


def _tuned_attention(tuned: Tuned, figures: Sequence[Measurement]) -> Criterion:
    """Added after all seeds had shown that A-multi-query is missed with the widths of the study.

    The widths are chosen on the seeds of the curve and judged on the others.
    """

    def mean(arm: str) -> float:
        return statistics.fmean(
            item.figures["loss_nats"]
            for item in figures
            if item.arm == arm and item.seed in tuned.judged_on
        )

    seeds = " and ".join(map(str, tuned.judged_on))
    return Criterion(
        "A-tuned",
        f"loss of {tuned.arm}, the best of the curve, above that of multi-query attention, on "
        f"seeds {seeds}, which did not choose it",
        mean(tuned.arm) - mean(arms.MQA),
        "<=",
        -0.005,
    )


def _experts(mean: Mean) -> list[Criterion]:
    gain = mean(arms.CONVENTIONAL, "loss_nats") - mean(arms.LOSS, "loss_nats")
    what = "loss of one of four wide experts above that of fine-grained and shared ones"
    return [Criterion("B-fine-grained", what, gain, ">=", 0.01)]


def _balance(mean: Mean) -> list[Criterion]:
    figure = "maxvio_global"
    above = mean(arms.METHOD, "loss_nats") - mean(arms.LOSS, "loss_nats")
    return [
        Criterion("C-none", "MaxVio without balancing", mean(arms.NO_BALANCE, figure), ">=", 1.0),
        Criterion("C-bias", "MaxVio with the bias", mean(arms.METHOD, figure), "<=", 0.35),
        Criterion("C-loss", "MaxVio with the loss", mean(arms.LOSS, figure), "<=", 0.6),
        Criterion("C-price", "loss with the bias above that with the loss", above, "<=", 0.01),
    ]


def _groups(mean: Mean, worst: Callable[[str, str], float]) -> list[Criterion]:
    sent = mean(arms.METHOD, "groups_per_token")
    return [
        Criterion(
            "D-loss",
            "difference of the loss between 2 groups a token and any",
            abs(mean(arms.METHOD, "loss_nats") - mean(arms.ANY_GROUPS, "loss_nats")),
            "<=",
            0.02,
        ),
        Criterion(
            "D-most",
            "groups that any token of the test side goes to, at most",
            worst(arms.METHOD, "most_groups_per_token"),
            "<=",
            2.0,
        ),
        Criterion("D-rows", "rows sent for a token to 4 devices", sent, "<=", 2.0),
        Criterion(
            "D-share",
            "rows sent for a token by those without a limit",
            sent / mean(arms.ANY_GROUPS, "groups_per_token"),
            "<=",
            0.75,
        ),
    ]


def _dropping(mean: Mean) -> list[Criterion]:
    added = mean(arms.DROPPING, "loss_nats") - mean(arms.LOSS, "loss_nats")
    return [
        Criterion(
            "E-share",
            "share of the assignments dropped in the last 200 steps",
            mean(arms.DROPPING, "dropped_share"),
            "<",
            0.05,
        ),
        Criterion("E-loss", "loss, with nothing dropped, that dropping adds", added, "<=", 0.02),
    ]
