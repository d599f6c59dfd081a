"""The mixture of experts against a slow loop; its balance losses, bias and dropping."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from models.balance import balance_losses, max_violation, statistics, updated_bias
from models.decoder import DecoderLM
from models.decoder_config import DecoderConfig, deepseek_config
from models.dropping import capacity, is_exempt, kept
from models.expert_config import ExpertsConfig
from models.experts import Experts, dispatch
from models.feed_forward import SwiGLUFeedForward
from models.initialise import initialise
from models.latent_config import LatentConfig
from models.losses import next_token_targets
from models.mixture import MixtureOfExperts
from models.routing import Routing, route

V2 = ExpertsConfig(
    routed=16, shared=2, per_token=3, width=10, groups=4, groups_per_token=2, scale=1.3
)
V3 = dataclasses.replace(V2, gate="sigmoid", normalised=True, scale=2.5)
BOTH = pytest.mark.parametrize("experts", [V2, V3], ids=["v2", "v3"])


def decoder(experts: ExpertsConfig) -> DecoderConfig:
    return deepseek_config(
        vocab_size=61,
        width=24,
        layers=3,
        heads=2,
        head_width=8,
        feed_forward_width=40,
        latent=LatentConfig(12, 8, 8),
        experts=dataclasses.replace(experts, dense_layers=1),
        initial_std=0.3,
    )


def layer(experts: ExpertsConfig) -> MixtureOfExperts:
    mixture = MixtureOfExperts(decoder(experts), 0)
    initialise(mixture, std=0.3, generator=torch.Generator().manual_seed(0))
    if mixture.selection_bias is not None:
        mixture.selection_bias.copy_(draw(16, seed=4) * 0.1)
    return mixture


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def swiglu(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    gate, up = (gate_up @ x).chunk(2)
    return down @ (F.silu(gate) * up)


def slow(mixture: MixtureOfExperts, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """The formula of the report, one token and one expert at a time; `gates` is [X, N]."""
    rows = []
    for token, row in enumerate(x):
        out = swiglu(row, mixture.shared.gate_up.weight, mixture.shared.down.weight)
        for expert in gates[token].nonzero()[:, 0].tolist():
            weights = mixture.experts.gate_up[expert], mixture.experts.down[expert]
            out = out + gates[token, expert] * swiglu(row, *weights)
        rows.append(out)
    return torch.stack(rows)


@BOTH
def test_output_and_gradients_equal_the_slow_loop(experts: ExpertsConfig) -> None:
    mixture = layer(experts).double()
    x = draw(2, 9, 24).double().requires_grad_()
    weight = draw(18, 24, seed=2).double()
    (mixture(x).flatten(0, 1) * weight).sum().backward()
    names = ["x", *(name for name, _ in mixture.named_parameters())]
    tensors = [x, *mixture.parameters()]
    found = [tensor.grad.clone() for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    routing = mixture.route(x.flatten(0, 1))
    gates = torch.zeros(18, 16, dtype=torch.float64).scatter(
        1, routing.experts, routing.gates.double()
    )
    expected = slow(mixture, x.flatten(0, 1), gates)
    torch.testing.assert_close(mixture(x).flatten(0, 1), expected, atol=1e-6, rtol=0)
    (expected * weight).sum().backward()
    for name, tensor, gradient in zip(names, tensors, found, strict=True):
        torch.testing.assert_close(gradient, tensor.grad, atol=1e-5, rtol=1e-5, msg=name)


def test_shared_experts_are_one_wide_one() -> None:
    config = decoder(V2)
    wide = SwiGLUFeedForward(config, width=20)
    initialise(wide, std=0.3, generator=torch.Generator().manual_seed(0))
    gate, up = wide.gate_up.weight.chunk(2)
    x = draw(5, 24)
    total = torch.zeros(5, 24)
    for part in range(2):
        one = SwiGLUFeedForward(config, width=10)
        rows = slice(part * 10, part * 10 + 10)
        one.gate_up.weight.data = torch.cat((gate[rows], up[rows]))
        one.down.weight.data = wide.down.weight[:, rows]
        total = total + one(x)
    torch.testing.assert_close(wide(x), total, atol=1e-5, rtol=0)


# Dispatch.


def identity_experts(count: int, width: int) -> Experts:
    """Experts whose output is their input: silu(30) is 30, and 30 x / 30 is x."""
    experts = Experts(count, width + 1, width)
    experts.gate_up.data.zero_()
    experts.down.data.zero_()
    experts.gate_up.data[:, :width, width] = 30.0
    experts.gate_up.data[:, width:, :width] = torch.eye(width)
    experts.down.data[:, :width] = torch.eye(width) / 30
    return experts


@pytest.mark.parametrize("case", ["spread", "all on one", "some without", "no rows"])
def test_dispatch_is_a_permutation_and_returns_rows_to_their_tokens(case: str) -> None:
    rows = 0 if case == "no rows" else 40
    generator = torch.Generator().manual_seed(0)
    chosen = torch.stack(
        [torch.randperm(8, generator=generator)[:3] for _ in range(rows)]
        or [torch.zeros(3, dtype=torch.long)]
    )[:rows]
    if case == "all on one":
        chosen = torch.full_like(chosen, 5)
    if case == "some without":
        chosen = chosen.clamp(min=4)
    gates, x = torch.rand(rows, 3, generator=generator), draw(rows, 6)
    plan = dispatch(chosen, 8)
    assert sum(plan.counts) == chosen.numel()
    assert sorted(plan.slots.tolist()) == list(range(chosen.numel()))
    ordered = chosen.flatten()[plan.slots]
    assert torch.equal(ordered, ordered.sort().values)
    padded = F.pad(x, (0, 1), value=1.0)
    out = identity_experts(8, 6)(padded, gates, plan)[:, :6]
    torch.testing.assert_close(out, gates.sum(1, keepdim=True) * x, atol=1e-6, rtol=1e-6)


def test_slots_left_out_add_nothing_and_have_no_gradient() -> None:
    experts = Experts(4, 6, 5)
    for matrices in (experts.gate_up, experts.down):
        matrices.data.normal_(generator=torch.Generator().manual_seed(0))
    chosen = torch.tensor([[0, 1], [2, 1], [3, 0]])
    is_kept = torch.tensor([[True, False], [False, False], [True, True]])
    x, gates = draw(3, 6).requires_grad_(), torch.rand(3, 2).requires_grad_()
    out = experts(x, gates, dispatch(chosen, 4, is_kept))
    masked = experts(x, gates * is_kept, dispatch(chosen, 4))
    torch.testing.assert_close(out, masked)
    out.sum().backward()
    assert out[1].abs().sum() == 0
    assert gates.grad[~is_kept].abs().sum() == 0
    assert x.grad[1].abs().sum() == 0


# Balance.


def uniform_routing(tokens: int, experts: ExpertsConfig) -> Routing:
    """Uniform affinities, and a balanced selection that keeps to the groups of a token."""
    chosen = [
        [
            (token % experts.groups + k % experts.groups_per_token)
            % experts.groups
            * experts.group_size
            + (token // experts.groups + k) % experts.group_size
            for k in range(experts.per_token)
        ]
        for token in range(tokens)
    ]
    affinities = torch.full((tokens, experts.routed), 1 / experts.routed, requires_grad=True)
    chosen_XK = torch.tensor(chosen)
    return Routing(chosen_XK, affinities.gather(1, chosen_XK), affinities, affinities.log())


def test_every_balance_loss_is_1_when_the_load_is_even() -> None:
    even = dataclasses.replace(V2, per_token=4)
    seen = statistics(uniform_routing(32, even), None, sequences=2, config=even)
    assert seen.load.sum(0).unique().numel() == 1
    for loss in balance_losses(seen, even):
        assert float(loss.detach()) == pytest.approx(2.0, abs=1e-5)


def test_with_a_router_of_zeros_f_and_p_are_uniform_over_the_selected() -> None:
    x = draw(8, 12)
    routing = route(x, torch.zeros(16, 12), None, V2)
    seen = statistics(routing, None, sequences=2, config=V2)
    torch.testing.assert_close(seen.affinity, torch.full((2, 16), 1 / 16))
    assert seen.load.tolist() == [[4.0] * 3 + [0.0] * 13] * 2
    assert float(balance_losses(seen, V2).expert) == pytest.approx(2.0, abs=1e-5)


@BOTH
def test_balance_losses_equal_their_definition(experts: ExpertsConfig) -> None:
    x, router = draw(3 * 20, 12), draw(16, 12, seed=5)
    bias = torch.zeros(16) if experts.has_bias else None
    routing = route(x, router, bias, experts)
    seen = statistics(routing, None, sequences=3, config=experts)
    found = balance_losses(seen, experts)
    expected = [0.0, 0.0, 0.0]
    for sequence in range(3):
        rows = range(sequence * 20, sequence * 20 + 20)
        f, p = [0.0] * 16, [0.0] * 16
        sent = [0.0] * 4
        for t in rows:
            s = routing.affinities[t]
            if experts.gate == "sigmoid":
                s = s / s.sum()
            for i in range(16):
                p[i] += float(s[i]) / 20
            for i in routing.experts[t].tolist():
                f[i] += 16 / (3 * 20)
            for g in {i // 4 for i in routing.experts[t].tolist()}:
                sent[g] += 4 / (2 * 20)
        group = range(4)
        group_p = [sum(p[4 * g : 4 * g + 4]) for g in group]
        group_f = [sum(f[4 * g : 4 * g + 4]) / 4 for g in group]
        expected[0] += sum(a * b for a, b in zip(f, p, strict=True))
        expected[1] += sum(a * b for a, b in zip(group_f, group_p, strict=True))
        expected[2] += sum(a * b for a, b in zip(sent, group_p, strict=True))
    assert [float(loss) for loss in found] == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_the_expert_loss_flows_through_p_alone() -> None:
    x = draw(40, 12)
    logits_router = draw(16, 12, seed=5).requires_grad_()
    seen = statistics(route(x, logits_router, None, V2), None, sequences=2, config=V2)
    balance_losses(seen, V2).expert.backward()
    found = logits_router.grad.clone()
    logits_router.grad = None
    held = (seen.load * 16 / (3 * 20)).detach()
    p = torch.unflatten((x @ logits_router.T).softmax(-1), 0, (2, 20)).mean(1)
    (held * p).sum().backward()
    torch.testing.assert_close(found, logits_router.grad, atol=1e-6, rtol=1e-5)


def test_the_bias_follows_the_load_of_the_global_batch() -> None:
    load = torch.tensor([5.0, 3.0, 1.0, 3.0])
    bias = updated_bias(torch.zeros(4), load, 0.001)
    assert bias.dtype == torch.float32
    torch.testing.assert_close(bias, torch.tensor([-0.001, 0.0, 0.001, 0.0]))
    # Two ranks: the sum decides, not the sum of the signs.
    ranks = torch.tensor([[9.0, 0.0, 0.0], [0.0, 4.0, 5.0]])
    signs = sum(updated_bias(torch.zeros(3), rank, 1.0) for rank in ranks)
    whole = updated_bias(torch.zeros(3), ranks.sum(0), 1.0)
    assert whole.tolist() == [-1.0, 1.0, 1.0]
    assert whole.tolist() != [float(value) for value in signs]


def test_the_measure_of_imbalance() -> None:
    assert max_violation(torch.tensor([3.0, 3.0, 3.0])) == 0.0
    assert max_violation(torch.tensor([6.0, 3.0, 0.0])) == 1.0
    assert max_violation(torch.zeros(3)) == 0.0


# Dropping.

CAPPED = dataclasses.replace(V2, capacity_factor=1.0)


def choose(tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    routing = route(draw(tokens, 12, seed=seed), draw(16, 12, seed=5), None, V2)
    return routing.experts, routing.affinities.gather(1, routing.experts)


def per_group(experts_XK: torch.Tensor, keep: torch.Tensor) -> list[int]:
    return torch.bincount(experts_XK[keep] // 4, minlength=4).tolist()


def test_no_group_takes_more_than_its_budget() -> None:
    chosen, affinities = choose(100)
    keep = kept(chosen, affinities, torch.zeros(100, dtype=torch.bool), CAPPED)
    budget = capacity(CAPPED, 100)
    assert budget == 75
    before = per_group(chosen, torch.ones_like(keep))
    assert per_group(chosen, keep) == [min(count, budget) for count in before]
    assert max(before) > budget
    assert int(keep.sum()) + int((~keep).sum()) == 100 * 3
    for group in range(4):
        mine = chosen // 4 == group
        if (mine & ~keep).any():
            assert affinities[mine & ~keep].max() <= affinities[mine & keep].min()


def test_exempt_tokens_stay_and_count_first() -> None:
    chosen, affinities = choose(100)
    exempt = torch.arange(100) % 4 == 0
    keep = kept(chosen, affinities, exempt, CAPPED)
    assert keep[exempt].all()
    assert max(per_group(chosen, keep)) <= 75
    # Alone above the budget: all of them stay, and nobody else does.
    tight = dataclasses.replace(V2, capacity_factor=0.1)
    keep = kept(chosen, affinities, exempt, tight)
    assert keep[exempt].all()
    for group in range(4):
        mine = chosen // 4 == group
        if int(mine[exempt].sum()) >= capacity(tight, 100):
            assert not keep[~exempt][mine[~exempt]].any()


def test_the_order_of_the_batch_does_not_matter() -> None:
    chosen, affinities = choose(100)
    exempt = torch.arange(100) % 7 == 0
    keep = kept(chosen, affinities, exempt, CAPPED)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(3))
    again = kept(chosen[order], affinities[order], exempt[order], CAPPED)
    assert torch.equal(again, keep[order])


def test_of_equals_the_later_token_goes_then_the_higher_expert() -> None:
    one_group = ExpertsConfig(routed=4, shared=1, per_token=2, width=4, capacity_factor=0.375)
    chosen = torch.tensor([[1, 0], [3, 2], [0, 1], [2, 0]])
    keep = kept(chosen, torch.ones(4, 2), torch.zeros(4, dtype=torch.bool), one_group)
    assert capacity(one_group, 4) == 3
    assert keep.tolist() == [[True, True], [False, True], [False, False], [False, False]]


def test_about_the_asked_share_of_sequences_is_exempt_and_always_the_same() -> None:
    ids = torch.arange(20_000)
    chosen = is_exempt(ids, 0.1)
    assert 0.09 < float(chosen.float().mean()) < 0.11
    assert torch.equal(is_exempt(ids.flip(0), 0.1), chosen.flip(0))
    assert not is_exempt(ids, 0.0).any()
    assert is_exempt(ids, 1.0).all()


def test_tokens_are_dropped_in_training_only() -> None:
    mixture = layer(dataclasses.replace(V2, capacity_factor=0.5))
    x = draw(2, 40, 24)
    trained, seen = mixture.observed(x, torch.tensor([1, 2]))
    assert float(seen.dropped) > 0
    mixture.eval()
    evaluated, seen = mixture.observed(x, torch.tensor([1, 2]))
    assert float(seen.dropped) == 0
    torch.testing.assert_close(evaluated, mixture(x))
    assert not torch.allclose(trained, evaluated)


# In a decoder.


@BOTH
@pytest.mark.parametrize("checkpointing", [False, True])
def test_observing_changes_neither_loss_nor_gradient(
    experts: ExpertsConfig, checkpointing: bool
) -> None:
    ids = torch.randint(61, (3, 17), generator=torch.Generator().manual_seed(0))
    targets = next_token_targets(ids)
    config = decoder(experts)
    plain = DecoderLM(config, torch.Generator().manual_seed(0))
    plain(ids, targets_BT=targets).backward()
    model = DecoderLM(
        config, torch.Generator().manual_seed(0), checkpoint_activations=checkpointing
    )
    observed = model(ids, targets_BT=targets, observe=True)
    assert len(observed.routing) == 2
    for seen in observed.routing:
        assert float(seen.load.sum()) == 3 * 17 * 3
    balance = sum(balance_losses(seen, experts).expert for seen in observed.routing)
    (observed.total + 0.0 * balance).backward()
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-5)


def test_a_result_does_not_depend_on_its_neighbours() -> None:
    model = DecoderLM(decoder(V3), torch.Generator().manual_seed(0)).eval()
    ids = torch.randint(61, (4, 17), generator=torch.Generator().manual_seed(0))
    together = model(ids)
    for row in range(4):
        torch.testing.assert_close(model(ids[row : row + 1])[0], together[row], atol=1e-5, rtol=0)


@BOTH
def test_a_row_alone_is_computed_as_among_others(experts: ExpertsConfig) -> None:
    mixture, x = layer(experts), draw(9, 24)
    with torch.no_grad():
        together = mixture(x)
        for row in range(9):
            torch.testing.assert_close(mixture(x[row : row + 1])[0], together[row])


def test_the_bias_is_a_float32_buffer_that_no_gradient_reaches() -> None:
    model = DecoderLM(decoder(V3), torch.Generator().manual_seed(0))
    names = dict(model.named_buffers())
    assert list(names) == [
        f"decoder.blocks.{layer}.feed_forward.selection_bias" for layer in (1, 2)
    ]
    assert all(buffer.dtype == torch.float32 for buffer in names.values())
    assert names.keys() <= model.state_dict().keys()
    assert not dict(DecoderLM(decoder(V2), torch.Generator()).named_buffers())
