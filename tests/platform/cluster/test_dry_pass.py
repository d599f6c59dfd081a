"""What a pass without values measures is what a real pass costs."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heliostat.cluster.dry_pass import DryPass, count_parameters, dry_pass
from heliostat.cluster.flops import measure_flops
from heliostat.train.task import Batch, LossTerm
from models.counting import PYTHIA, lm_training_flops, parameter_count
from models.decoder import DecoderLM
from models.decoder_config import gpt_neox_config

SMALL = gpt_neox_config(vocab_size=500, width=64, layers=3, heads=4)


class NextToken:
    """The loss of a language model; the only part of a task that a dry pass needs."""

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        logits = model(batch["ids"])
        total = F.cross_entropy(logits.flatten(0, 1), batch["ids"].flatten(), reduction="sum")
        return {"next": LossTerm(total, "tokens")}


def decoder(device: str) -> DecoderLM:
    with torch.device(device):
        return DecoderLM(SMALL, torch.Generator(device="cpu").manual_seed(0))


def measure(device: str, precision: str = "fp32") -> DryPass:
    batch = {"ids": torch.zeros(2, 96, dtype=torch.long)}
    return dry_pass(NextToken(), decoder(device), batch, precision)  # type: ignore[arg-type]


def test_meta_counts_what_the_cpu_does_exactly() -> None:
    meta, cpu = measure("meta"), measure("cpu")
    assert meta.flops == cpu.flops == lm_training_flops(SMALL, batch=2, tokens=96)
    assert meta.activation_bytes == cpu.activation_bytes
    assert meta.checkpointed_bytes == cpu.checkpointed_bytes


def test_activations_of_a_perceptron_are_its_inputs_and_pre_activations() -> None:
    class Perceptron(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 32)
            self.second = nn.Linear(32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(F.gelu(self.first(x)))

    class Total:
        def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
            return {"total": LossTerm(model(batch["x"]).sum(), "rows")}

    with torch.device("meta"):
        model = Perceptron()
    found = dry_pass(Total(), model, {"x": torch.zeros(10, 8)}, "fp32")  # type: ignore[arg-type]
    # The input, what gelu was given, and what it gave: 8 + 32 + 32 numbers a row.
    assert found.activation_bytes == 4 * 10 * (8 + 32 + 32)
    assert found.checkpointed_bytes is None


def test_checkpointing_keeps_block_inputs_and_one_block() -> None:
    found = measure("meta")
    assert found.checkpointed_bytes is not None
    assert found.checkpointed_bytes < found.activation_bytes
    # At least the input of each of the 3 blocks, [2, 96, 64] in fp32.
    assert found.checkpointed_bytes > 3 * 2 * 96 * 64 * 4


def test_half_precision_nearly_halves_activations_and_changes_no_flops() -> None:
    full, half = measure("meta"), measure("meta", "bf16")
    assert half.flops == full.flops
    assert 0.5 <= half.activation_bytes / full.activation_bytes < 0.7


def test_measuring_leaves_the_switch_of_checkpointing_as_it_was() -> None:
    model = decoder("meta")
    dry_pass(NextToken(), model, {"ids": torch.zeros(1, 8, dtype=torch.long)}, "fp32")  # type: ignore[arg-type]
    assert not any(getattr(m, "checkpoint_activations", False) for m in model.modules())


def test_tied_embeddings_count_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 4)
            self.output = nn.Linear(4, 10, bias=False)
            self.output.weight = self.embedding.weight

    count = count_parameters(Tied())
    assert (count.total, count.trainable, count.embedding) == (40, 40, 40)


def test_frozen_parameters_are_not_trained() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    assert count_parameters(model).trainable == 6


def test_a_model_of_12_billion_parameters_is_measured_without_its_memory() -> None:
    config = PYTHIA["12b"]
    with torch.device("meta"):
        model = DecoderLM(config, torch.Generator(device="cpu"))
    batch = {"ids": torch.zeros(1, 2048, dtype=torch.long)}
    found = dry_pass(NextToken(), model, batch, "bf16")  # type: ignore[arg-type]
    assert count_parameters(model).total == parameter_count(config)
    assert found.flops == pytest.approx(lm_training_flops(config, batch=1, tokens=2048), rel=1e-3)


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_attention_with_shared_heads_costs_the_same_on_meta_and_cpu(shared: int) -> None:
    class Attention(nn.Module):
        def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            from heliostat.cluster.meta_attention import with_fused_attention

            return with_fused_attention(
                lambda: F.scaled_dot_product_attention(query, key, key, enable_gqa=shared != 4)
            )

    model = Attention()

    def flops(device: str) -> float:
        query = torch.zeros(2, 4, 16, 8, device=device, requires_grad=True)
        key = torch.zeros(2, shared, 16, 8, device=device, requires_grad=True)
        return measure_flops(model, lambda: model(query, key).sum().backward())

    assert flops("meta") == flops("cpu") == 6 * 2 * 2 * 4 * 16 * 16 * 8
