"""Losses against torch's plain cross entropy, and the sums that make batches add up."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from models import linear_cross_entropy as module
from models.decoder import DecoderLM
from models.decoder_config import gpt_neox_config
from models.linear_cross_entropy import linear_cross_entropy_sum
from models.losses import classification_loss, next_token_loss, next_token_targets

CONFIG = gpt_neox_config(vocab_size=61, width=32, layers=2, heads=4)


def model() -> DecoderLM:
    return DecoderLM(CONFIG, torch.Generator().manual_seed(0))


def tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(61, (rows, length), generator=torch.Generator().manual_seed(seed))


def problem(dtype: torch.dtype, rows: int = 700) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 24, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(301, 24, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(301, (rows,), generator=generator)


@pytest.mark.parametrize("logits_at_once", [1, 2**17, 2**30])
def test_chunked_cross_entropy_equals_the_plain_one(
    logits_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE_CPU", logits_at_once)
    hidden, weight, targets = problem(torch.float32)
    total = linear_cross_entropy_sum(hidden, weight, targets)
    plain = F.cross_entropy(hidden.double() @ weight.double().T, targets, reduction="sum")
    torch.testing.assert_close(total.double(), plain, rtol=1e-6, atol=0)
    found = torch.autograd.grad(total * 0.3, (hidden, weight))
    expected = torch.autograd.grad(plain * 0.3, (hidden, weight))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy_sum(hidden, weight, targets), total)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sum_over_many_targets_neither_overflows_nor_rounds(dtype: torch.dtype) -> None:
    hidden, weight, targets = problem(dtype, rows=30_000)
    total = linear_cross_entropy_sum(hidden, weight, targets)
    plain = F.cross_entropy(hidden.double() @ weight.double().T, targets, reduction="sum")
    assert total.dtype == torch.float32
    assert total.item() > torch.finfo(torch.float16).max
    assert total.item() == pytest.approx(plain.item(), rel=2e-4)
    found = torch.autograd.grad(total / 30_000, (hidden, weight))
    expected = torch.autograd.grad(plain / 30_000, (hidden, weight))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        assert ((ours - theirs).norm() / theirs.norm()).item() < 0.01


def test_extreme_logits_give_finite_losses_and_gradients() -> None:
    hidden = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    total = linear_cross_entropy_sum(hidden, weight, torch.tensor([1, 1]))
    assert total.item() == pytest.approx(600.0)
    total.backward()
    torch.testing.assert_close(hidden.grad, torch.tensor([[2.0], [0.0]]))
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


def test_no_targets_give_zero_loss_and_zero_gradients() -> None:
    lm, ids = model(), tokens(2, 6)
    loss = next_token_loss(lm, ids, torch.full_like(ids, -100))
    assert (loss.total.item(), loss.targets.item()) == (0.0, 0)
    loss.total.backward()
    assert all(p.grad is None or not p.grad.any() for p in lm.parameters())


def test_autocast_runs_the_output_embedding_in_the_lower_precision() -> None:
    lm, ids = model(), tokens(2, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = next_token_loss(lm, ids, ids)
        loss.mean.backward()
    assert loss.total.dtype == torch.float32
    assert loss.mean.item() == pytest.approx(next_token_loss(lm, ids, ids).mean.item(), abs=0.02)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in lm.parameters())


def test_targets_are_the_labels_of_the_next_position() -> None:
    labels = torch.tensor([[4, 5, -100, 7], [1, -100, -100, -100]])
    assert next_token_targets(labels).tolist() == [
        [5, -100, 7, -100],
        [-100, -100, -100, -100],
    ]


def test_loss_equals_cross_entropy_of_the_logits() -> None:
    lm, ids = model(), tokens(3, 17)
    labels = ids.clone()
    labels[0, 5:9] = -100
    labels[2] = -100
    loss = next_token_loss(lm, ids, labels)
    logits = lm(ids)[:, :-1].flatten(0, 1)
    plain = F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(loss.total, plain)
    assert loss.targets.item() == (labels[:, 1:] != -100).sum().item()
    ours = torch.autograd.grad(loss.total, tuple(lm.parameters()))
    theirs = torch.autograd.grad(plain, tuple(lm.parameters()))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_padded_last_row_gives_the_token_weighted_mean() -> None:
    lm = model()
    full, short = tokens(3, 8), tokens(1, 5, seed=2)
    padded = F.pad(short, (0, 3), value=60)
    ids = torch.cat([full, padded])
    labels = ids.clone()
    labels[3, 5:] = -100
    batch = next_token_loss(lm, ids, labels)
    parts = [next_token_loss(lm, full, full), next_token_loss(lm, short, short)]
    total = sum(part.total for part in parts)
    targets = sum(part.targets for part in parts)
    assert batch.targets.item() == targets == 3 * 7 + 4
    torch.testing.assert_close(batch.mean, total / targets, atol=1e-5, rtol=1e-6)


def test_uniform_logits_over_640_classes_cost_ln_640() -> None:
    labels = torch.arange(640).repeat(2)
    loss = classification_loss(torch.zeros(1280, 640), labels)
    assert loss.targets.item() == 1280
    assert loss.mean.item() == pytest.approx(6.461468, abs=1e-5)
    assert loss.mean.item() == pytest.approx(math.log(640), abs=1e-5)


def test_classification_loss_skips_ignored_rows_and_smooths_labels() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, -100, 3, 0, -100])
    loss = classification_loss(logits, labels, label_smoothing=0.1)
    log_p = logits.log_softmax(1)
    kept = [0, 2, 3]
    expected = -sum(0.9 * log_p[row, labels[row]] + 0.1 * log_p[row].mean() for row in kept)
    torch.testing.assert_close(loss.total, expected)
    assert loss.targets.item() == 3
