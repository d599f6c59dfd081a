"""Counts against the published table, against instantiated models and against a FLOP counter."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.classifier import DecoderClassifier
from models.counting import (
    DEEPSEEK,
    PYTHIA,
    active_count,
    classifier_parameter_count,
    classifier_training_flops,
    lm_training_flops,
    non_embedding_count,
    parameter_count,
    training_compute,
)
from models.decoder import Decoder, DecoderLM
from models.decoder_config import (
    DecoderConfig,
    deepseek_config,
    gpt_neox_config,
    llama_config,
)
from models.expert_config import ExpertsConfig
from models.latent_config import LatentConfig
from models.losses import classification_loss, next_token_loss

# size: N, N', classifier of 640 classes
TABLE = {
    "70m": (70_426_624, 18_915_328, 44_998_656),
    "160m": (162_322_944, 85_056_000, 124_180_992),
    "410m": (405_334_016, 302_311_424, 354_478_080),
    "1b": (1_011_781_632, 805_736_448, 910_069_760),
    "1.4b": (1_414_647_808, 1_208_602_624, 1_312_935_936),
    "2.8b": (2_775_208_960, 2_517_652_480, 2_648_069_120),
    "6.9b": (6_857_302_016, 6_444_163_072, 6_653_353_984),
    "12b": (11_846_072_320, 11_327_027_200, 11_589_826_560),
}
LLAMA = llama_config(
    vocab_size=200, width=64, layers=3, heads=8, key_value_heads=2, feed_forward_width=176
)
SMALL = [
    gpt_neox_config(vocab_size=256, width=64, layers=2, heads=4),
    LLAMA,
    dataclasses.replace(LLAMA, tied_embeddings=True),
    dataclasses.replace(LLAMA, has_biases=True, key_value_heads=8, head_width=16),
    deepseek_config(
        vocab_size=100,
        width=48,
        layers=3,
        heads=4,
        head_width=8,
        feed_forward_width=64,
        latent=LatentConfig(width=20, rotary_width=4, value_width=12, query_width=16),
        experts=ExpertsConfig(routed=8, shared=1, per_token=2, width=24, dense_layers=1),
    ),
]
# total, and active for a token without the token embedding but with the output embedding
DEEPSEEK_TABLE = {
    "v2-lite": (15_706_484_224, 2.45e9),
    "v2": (235_741_434_880, 20.85e9),
    "v3": (671_026_404_352, 36.6e9),
}


def built(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("size", TABLE)
def test_pythia_counts_equal_the_table_the_formula_and_the_model(size: str) -> None:
    config = PYTHIA[size]
    total, non_embedding, classifier = TABLE[size]
    v, d, layers = config.vocab_size, config.width, config.layers
    assert total == 2 * v * d + layers * (12 * d**2 + 13 * d) + 2 * d
    assert parameter_count(config) == total
    assert non_embedding_count(config) == non_embedding
    assert classifier_parameter_count(config, 640) == classifier
    with torch.device("meta"):
        generator = torch.Generator(device="cpu")
        lm = DecoderLM(config, generator)
        assert built(lm) == total
        assert built(DecoderClassifier(lm.decoder, 640, generator)) == classifier


@pytest.mark.parametrize("size", DEEPSEEK_TABLE)
def test_deepseek_counts_equal_the_table_and_the_model(size: str) -> None:
    config = DEEPSEEK[size]
    total, active = DEEPSEEK_TABLE[size]
    assert parameter_count(config) == total
    with_head = active_count(config) + config.vocab_size * config.width
    assert with_head == pytest.approx(active, rel=3e-3)
    with torch.device("meta"):
        assert built(DecoderLM(config, torch.Generator(device="cpu"))) == total


def test_table_and_presets_name_the_same_sizes() -> None:
    assert TABLE.keys() == PYTHIA.keys()
    assert DEEPSEEK_TABLE.keys() == DEEPSEEK.keys()


@pytest.mark.parametrize("config", SMALL)
def test_counts_equal_the_model_for_every_family(config: DecoderConfig) -> None:
    generator = torch.Generator().manual_seed(0)
    assert parameter_count(config) == built(DecoderLM(config, generator))
    classifier = DecoderClassifier(Decoder(config, generator), 12, generator)
    assert classifier_parameter_count(config, 12) == built(classifier)


@pytest.mark.parametrize("config", SMALL)
def test_lm_flops_agree_with_the_counter(config: DecoderConfig) -> None:
    lm = DecoderLM(config, torch.Generator().manual_seed(0))
    ids = torch.zeros(3, 64, dtype=torch.long)
    # The counter has no entry for the fused CPU kernel; the plain one shows it both products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        lm(ids).sum().backward()
    expected = lm_training_flops(config, batch=3, tokens=64)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.001)


@pytest.mark.parametrize("config", SMALL)
def test_loss_flops_agree_with_the_counter_and_follow_the_targets(config: DecoderConfig) -> None:
    lm = DecoderLM(config, torch.Generator().manual_seed(0))
    ids = torch.zeros(3, 64, dtype=torch.long)
    labels = ids.clone()
    labels[0] = -100
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = next_token_loss(lm, ids, labels)
        loss.total.backward()
    targets = int(loss.targets)
    assert targets == 2 * 63
    expected = lm_training_flops(config, batch=3, tokens=64, targets=targets)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.001)


@pytest.mark.parametrize("config", SMALL)
def test_classifier_flops_agree_with_the_counter(config: DecoderConfig) -> None:
    generator = torch.Generator().manual_seed(0)
    classifier = DecoderClassifier(Decoder(config, generator), 50, generator)
    ids = torch.zeros(3, 64, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = classifier(ids)
        classification_loss(logits, torch.zeros(3, dtype=torch.long)).total.backward()
    expected = classifier_training_flops(config, batch=3, tokens=64, classes=50)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.001)


def test_compute_of_a_training_follows_both_conventions() -> None:
    config, tokens, s = PYTHIA["410m"], 29e9, 2048
    compute = training_compute(config, trained_tokens=tokens, seq_len=s)
    assert compute.non_embedding == pytest.approx(6 * 302_311_424 * tokens)
    assert compute.non_embedding == pytest.approx(5.3e19, rel=0.01)
    assert compute.with_output_and_attention == pytest.approx(
        6 * (302_311_424 + 50_304 * 1024) * tokens + 6 * 24 * 1024 * s * tokens
    )


@pytest.mark.parametrize(
    ("size", "flops"),
    [("410m", 7.4e19), ("1.4b", 2.6e20), ("2.8b", 5.1e20), ("6.9b", 1.26e21), ("12b", 2.2e21)],
)
def test_compute_of_the_full_scale_runs(size: str, flops: float) -> None:
    compute = training_compute(PYTHIA[size], trained_tokens=30.4e9, seq_len=2048)
    assert compute.with_output_and_attention == pytest.approx(flops, rel=0.03)
