"""Gated attention units: their formula, their size, their schemes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from heliostat.train.engine import decay_groups
from models.contiguous_cache import ContiguousCache
from models.gau import GauLM
from models.gau_config import GauConfig, gau_parameter_count, gau_training_flops
from models.planned_lm import plan_for
from models.positions import PositionScheme

CONFIG = GauConfig(vocab_size=31, width=24, layers=2, head_width=16)


def make_model() -> GauLM:
    return GauLM(CONFIG, torch.Generator().manual_seed(0))


def draw(tokens: int = 40) -> torch.Tensor:
    return torch.randint(31, (2, tokens), generator=torch.Generator().manual_seed(1))


def by_hand(model: GauLM, ids: torch.Tensor) -> torch.Tensor:
    """The formulas of the module's head, with rotations as complex numbers."""
    x = model.decoder.embedding.weight[ids]
    n, s = ids.shape[1], CONFIG.head_width
    frequencies = 10_000.0 ** (-2 * torch.arange(s // 2, dtype=torch.float64) / s)
    phases = torch.polar(
        torch.ones(n, s // 2, dtype=torch.float64), torch.arange(n)[:, None] * frequencies
    )
    for unit in model.decoder.units:
        u, v, z = F.silu(x @ unit.gate_value_base.weight.T).split([48, 48, 16], dim=-1)
        turned = []
        for kind in range(2):
            own = slice(kind * s, (kind + 1) * s)
            one = (z * unit.scale[own] + unit.offset[own]).double()
            pairs = torch.complex(one[..., : s // 2], one[..., s // 2 :]) * phases
            turned.append(torch.cat((pairs.real, pairs.imag), dim=-1).float())
        logits = turned[0] @ turned[1].mT / math.sqrt(s)
        later = torch.ones(n, n, dtype=torch.bool).triu(1)
        weights = logits.masked_fill(later, -math.inf).softmax(dim=-1)
        o = (u * (weights @ v)) @ unit.output.weight.T
        x = F.rms_norm((2 * CONFIG.layers) ** 0.25 * x + o, (24,), unit.norm.weight, eps=1e-5)
    return x @ model.output_embedding.weight.T


def test_the_model_computes_its_formulas() -> None:
    model = make_model()
    for parameter in model.parameters():
        parameter.data.add_(
            torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.1
        )
    with torch.no_grad():
        torch.testing.assert_close(model(draw()), by_hand(model, draw()), rtol=0, atol=2e-5)


def test_parameters_and_flops_are_counted_exactly() -> None:
    model = make_model()
    assert sum(p.numel() for p in model.parameters()) == gau_parameter_count(CONFIG)
    with FlopCounterMode(display=False) as counter:
        model(draw()).sum().backward()
    counted = gau_training_flops(CONFIG, batch=2, tokens=40)
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.02)


def test_the_size_of_the_published_model() -> None:
    published = GauConfig(vocab_size=20_000, width=768, layers=24)
    assert gau_parameter_count(published) == pytest.approx(1.18e8, rel=0.01)


@pytest.mark.parametrize("log_n", ["none", "post"])
def test_every_scheme_reads_beyond_the_training_length(log_n: str) -> None:
    model = make_model()
    plain = model(draw())
    for scheme in (
        PositionScheme("rope"),
        PositionScheme("rerope", log_n=log_n, window=8),  # type: ignore[arg-type]
        PositionScheme("self_extend", log_n=log_n, window=8, group=3),  # type: ignore[arg-type]
        PositionScheme("dca"),
        PositionScheme("yarn", interval=4.0),
    ):
        plan = plan_for(CONFIG, scheme, train_length=16, length=40)
        found = model(draw(), position_plan=plan)
        if scheme.name == "rope":
            assert torch.equal(found, plain)
        else:
            assert found.isfinite().all()
            assert not torch.allclose(found, plain)
    wide = plan_for(CONFIG, PositionScheme("rerope", window=40), train_length=16, length=40)
    torch.testing.assert_close(model(draw(), position_plan=wide), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 40])
@pytest.mark.parametrize(
    "scheme",
    [
        None,
        PositionScheme("rope", log_n="post"),
        PositionScheme("rerope", window=6, log_n="post"),
        PositionScheme("self_extend", window=6, group=4),
        PositionScheme("dca"),
    ],
    ids=lambda scheme: "plain" if scheme is None else scheme.name,
)
def test_generation_over_a_cache_is_one_forward(scheme: PositionScheme | None, chunk: int) -> None:
    model, ids = make_model().eval(), draw()
    plan = None if scheme is None else plan_for(CONFIG, scheme, train_length=16, length=40)
    cache = ContiguousCache(model.cache_layouts(plan), sequences=2, capacity=40)
    with torch.inference_mode():
        expected = model(ids, position_plan=plan)
        found = []
        for start in range(0, 40, chunk):
            part = ids[:, start : start + chunk]
            step = cache.step([part.shape[1]] * 2)
            logits = model.cached(part.flatten(), step, position_plan=plan)
            found.append(torch.unflatten(logits, 0, part.shape))
    torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=0, atol=2e-5)


def test_the_loss_is_that_of_the_logits() -> None:
    model, ids = make_model(), draw()
    plan = plan_for(CONFIG, PositionScheme("rerope", window=8), train_length=16, length=39)
    total = model(ids[:, :-1], targets_BT=ids[:, 1:], position_plan=plan)
    logits = model(ids[:, :-1], position_plan=plan)
    expected = F.cross_entropy(logits.mT, ids[:, 1:], reduction="sum")
    torch.testing.assert_close(total, expected)
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_weight_decay_falls_on_matrices_only() -> None:
    model = make_model()
    _, kept = decay_groups(model)
    spared = {id(parameter) for parameter in kept["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in spared}
    assert {name.rpartition("units.")[2].partition(".")[2] for name in names} == {
        "scale",
        "offset",
        "norm.weight",
    }
