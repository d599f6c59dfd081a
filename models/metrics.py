"""Ranking and calibration figures of a classifier, in torch and nothing else.

Every function is deterministic: ties between classes go to the lower index. Probabilities are
formed in one order: divide by the temperature, mask, renormalise.

Shapes: B rows, C classes.
"""

from __future__ import annotations

import math

import torch


def ranking(scores_BC: torch.Tensor, k: int) -> torch.Tensor:
    """The k best classes of each row, best first, ties by lower index: [B, k]."""
    _require_numbers(scores_BC)
    return scores_BC.sort(dim=1, descending=True, stable=True).indices[:, :k]


def label_ranks(scores_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """The place of the true class in the ranking of its row, 0 for the first: [B]."""
    _require_numbers(scores_BC)
    score_B1 = scores_BC.gather(1, labels_B[:, None])
    classes_C = torch.arange(scores_BC.shape[1], device=scores_BC.device)
    wins_tie_BC = (scores_BC == score_B1) & (classes_C < labels_B[:, None])
    return ((scores_BC > score_B1) | wins_tie_BC).sum(dim=1)


def top_k_accuracy(scores_BC: torch.Tensor, labels_B: torch.Tensor, k: int) -> float:
    """The share of rows whose true class is among the k best."""
    return (label_ranks(scores_BC, labels_B) < k).double().mean().item()


def masked_probabilities(
    logits_BC: torch.Tensor, temperature: float, allowed: torch.Tensor
) -> torch.Tensor:
    """Probabilities over the allowed classes: temperature, then mask, then renormalise; float64.

    Masking logits equals dividing the other probabilities by what is left:
    p'_i = p_i / (1 - sum of masked p).

    Args:
        logits_BC: Logits.
        temperature: T, above 0.
        allowed: [C] or [B, C], true where a class may be suggested. A row that allows nothing
            is all zeros.
    """
    if not temperature > 0.0:
        raise ValueError(f"temperature must be above 0, got {temperature}.")
    allowed_BC = allowed.bool().expand(logits_BC.shape)
    scaled_BC = (logits_BC.double() / temperature).masked_fill(~allowed_BC, -math.inf)
    return scaled_BC.softmax(dim=1).masked_fill(~allowed_BC.any(dim=1, keepdim=True), 0.0)


def expected_calibration_error(
    confidence_B: torch.Tensor, correct_B: torch.Tensor, bins: int = 15
) -> float:
    """Mean gap between accuracy and confidence over equal-width bins, weighted by their rows.

    Guo et al. 2017 (arXiv 1706.04599), eq. 3: bin m holds the confidences in ((m-1)/M, m/M], and
    0 belongs to the first.

    Args:
        confidence_B: Probability of the predicted class.
        correct_B: Whether the predicted class is the true one.
        bins: M.
    """
    confidence_B = confidence_B.double()
    bin_B = ((confidence_B * bins).ceil().long() - 1).clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64, device=confidence_B.device)
    gaps.index_add_(0, bin_B, correct_B.double() - confidence_B)
    return gaps.abs().sum().item() / len(confidence_B)


def average_precision(scores_B: torch.Tensor, relevant_B: torch.Tensor) -> float:
    """Area under the precision-recall curve, sum over ranks of (R_n - R_{n-1}) P_n.

    Rows of equal score enter together, at one threshold, so their order does not matter. nan when
    nothing is relevant.
    """
    _require_numbers(scores_B)
    order_B = scores_B.argsort(descending=True)
    hits_B = relevant_B.bool()[order_B].double().cumsum(0)
    last_of_tie_B = scores_B[order_B].diff(append=scores_B.new_full((1,), math.nan)) != 0
    places_B = torch.arange(1, len(hits_B) + 1, dtype=torch.float64, device=hits_B.device)
    hits, places = hits_B[last_of_tie_B], places_B[last_of_tie_B]
    steps = hits.diff(prepend=hits.new_zeros(1))
    return (steps * hits / places).sum().item() / hits_B[-1].item() if hits_B[-1] else math.nan


def average_precision_by_class(scores_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """The average precision of every class against all others; nan for absent classes: [C]."""
    return torch.tensor(
        [average_precision(scores_BC[:, c], labels_B == c) for c in range(scores_BC.shape[1])],
        dtype=torch.float64,
    )


def macro_average_precision(by_class_C: torch.Tensor) -> float:
    """The mean over the classes that occur."""
    return by_class_C.nanmean().item()


def weighted_average_precision(by_class_C: torch.Tensor, labels_B: torch.Tensor) -> float:
    """The mean over classes, each weighted by how often it occurs."""
    rows_C = labels_B.cpu().bincount(minlength=len(by_class_C)).double()
    return (by_class_C.nan_to_num() * rows_C).sum().item() / rows_C.sum().item()


def negative_log_likelihood(
    logits_BC: torch.Tensor, labels_B: torch.Tensor, temperature: float = 1.0
) -> float:
    """Mean -log softmax(z / T)[y] in float64."""
    log_BC = (logits_BC.double() / temperature).log_softmax(dim=1)
    return -log_BC.gather(1, labels_B[:, None]).mean().item()


def fit_temperature(
    logits_BC: torch.Tensor,
    labels_B: torch.Tensor,
    *,
    lowest: float = 0.05,
    highest: float = 20.0,
) -> float:
    """The T in [lowest, highest] that minimises the negative log-likelihood of softmax(z / T).

    The likelihood is convex in 1 / T with slope E_p[z] - z_y, so in u = log T it has one minimum:
    Newton steps on u, in float64, inside a bracket that a sign of the slope halves whenever a step
    leaves it. Temperature scaling is Guo et al. 2017 (arXiv 1706.04599), section 4.2.
    """
    _require_numbers(logits_BC)
    logits_BC = logits_BC.double()
    target_B = logits_BC.gather(1, labels_B[:, None])[:, 0]
    low, high = math.log(lowest), math.log(highest)
    u = min(max(0.0, low), high)
    for _ in range(100):
        slope, curvature = _slope_and_curvature(logits_BC, target_B, u)
        if slope == 0.0:
            break
        if slope > 0.0:
            high = u
        else:
            low = u
        step = u - slope / curvature if curvature > 0.0 else math.nan
        following = step if low < step < high else (low + high) / 2
        if abs(following - u) < 1e-12:
            break
        u = following
    return math.exp(u)


def _slope_and_curvature(
    logits_BC: torch.Tensor, target_B: torch.Tensor, u: float
) -> tuple[float, float]:
    """First and second derivative of the mean negative log-likelihood in u = log T."""
    beta = math.exp(-u)
    p_BC = (logits_BC * beta).softmax(dim=1)
    expected_B = (p_BC * logits_BC).sum(dim=1)
    variance_B = (p_BC * (logits_BC - expected_B[:, None]).square()).sum(dim=1)
    slope = -beta * (expected_B - target_B).mean().item()
    return slope, beta**2 * variance_B.mean().item() - slope


def _require_numbers(scores: torch.Tensor) -> None:
    if bool(scores.isnan().any()):
        raise ValueError("scores hold nan: nothing can be ranked; look for a diverged model.")
