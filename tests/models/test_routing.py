"""Which experts tokens go to: gates, groups, ties."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.expert_config import ExpertsConfig
from models.routing import best, limit_to_groups, route

V2 = ExpertsConfig(
    routed=16, shared=1, per_token=3, width=8, groups=4, groups_per_token=2, scale=1.7
)
V3 = dataclasses.replace(V2, gate="sigmoid", normalised=True, scale=2.5)
BOTH = pytest.mark.parametrize("config", [V2, V3], ids=["v2", "v3"])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bias_of(config: ExpertsConfig) -> torch.Tensor | None:
    return draw(config.routed, seed=9) * 0.1 if config.has_bias else None


@BOTH
def test_experts_lie_in_few_groups_and_are_the_best_there(config: ExpertsConfig) -> None:
    x, router = draw(500, 12), draw(16, 12, seed=1)
    bias = bias_of(config)
    routing = route(x, router, bias, config)
    for token in range(500):
        scores = routing.affinities[token] + (bias if bias is not None else 0)
        grouped = scores.view(4, 4)
        worth = grouped.amax(1) if config.gate == "softmax" else grouped.topk(2).values.sum(1)
        groups = worth.topk(2).indices.tolist()
        allowed = [e for e in range(16) if e // 4 in groups]
        expected = sorted(allowed, key=lambda e: -float(scores[e]))[:3]
        assert routing.experts[token].tolist() == expected


@BOTH
def test_as_many_groups_as_there_are_is_a_plain_choice(config: ExpertsConfig) -> None:
    x, router = draw(200, 12), draw(16, 12, seed=1)
    limited = dataclasses.replace(config, groups_per_token=4)
    plain = dataclasses.replace(config, groups=1, groups_per_token=1)
    bias = bias_of(config)
    assert torch.equal(
        route(x, router, bias, limited).experts, route(x, router, bias, plain).experts
    )


def test_the_best_expert_is_left_when_its_group_loses() -> None:
    """V3 ranks a group by its best two, so a lone best expert may lose."""
    scores = torch.full((1, 16), 0.1)
    scores[0, 0] = 0.9
    for expert in (4, 5, 8, 9):
        scores[0, expert] = 0.6
    chosen = best(limit_to_groups(scores, V3), 3)[0].tolist()
    assert 0 not in chosen
    assert chosen == [4, 5, 8]
    # V2 ranks it by its best one, and takes it.
    assert best(limit_to_groups(scores, V2), 3)[0].tolist()[0] == 0


def test_gates_of_v2_are_scaled_probabilities() -> None:
    routing = route(draw(50, 12), draw(16, 12, seed=1), None, V2)
    probabilities = (draw(50, 12) @ draw(16, 12, seed=1).T).softmax(-1)
    torch.testing.assert_close(
        routing.gates, 1.7 * probabilities.gather(1, routing.experts), atol=1e-6, rtol=0
    )


def test_gates_of_v3_sum_to_rho_and_do_not_know_the_bias() -> None:
    x, router = draw(50, 12), draw(16, 12, seed=1)
    routing = route(x, router, bias_of(V3), V3)
    torch.testing.assert_close(routing.gates.sum(1), torch.full((50,), 2.5))
    unbiased = (x @ router.T).sigmoid().gather(1, routing.experts)
    torch.testing.assert_close(
        routing.gates, 2.5 * unbiased / unbiased.sum(1, keepdim=True), atol=1e-6, rtol=0
    )


def test_a_constant_on_all_biases_changes_nothing() -> None:
    x, router, bias = draw(300, 12), draw(16, 12, seed=1), bias_of(V3)
    assert bias is not None
    one, other = route(x, router, bias, V3), route(x, router, bias + 0.5, V3)
    assert torch.equal(one.experts, other.experts)
    assert torch.equal(one.gates, other.gates)


def test_of_equals_the_lowest_index_comes_first() -> None:
    routing = route(draw(7, 12), torch.zeros(16, 12), None, V2)
    assert routing.experts.tolist() == [[0, 1, 2]] * 7


def test_the_router_computes_in_float32() -> None:
    x, router = draw(64, 12).bfloat16(), draw(16, 12, seed=1).bfloat16()
    routing = route(x, router, None, V2)
    assert routing.affinities.dtype == torch.float32
    exact = route(x.float(), router.float(), None, V2)
    assert torch.equal(routing.experts, exact.experts)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"routed": 18}, "groups .4. must divide routed .18."),
        ({"per_token": 9}, "per_token .9. must not exceed the 8 experts"),
        ({"groups": 16, "groups_per_token": 3, "gate": "sigmoid"}, "gate sigmoid"),
        ({"groups_per_token": 5}, "groups_per_token .5. must not exceed groups"),
        ({"capacity_factor": 0.05}, "capacity_factor must be null or at least 0.1"),
        ({"gate": "tanh"}, "gate must be one of softmax, sigmoid"),
        ({"routed": 0}, "routed must be at least 1"),
    ],
)
def test_impossible_shapes_name_the_field(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(V2, **wrong)  # type: ignore[arg-type]
