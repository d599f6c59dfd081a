"""YaRN's frequencies and its two factors, which must not be confused."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from models.counting import DEEPSEEK
from models.decoder import DecoderLM
from models.decoder_config import DecoderConfig, deepseek_config
from models.expert_config import ExpertsConfig
from models.latent_attention import LatentAttention
from models.latent_config import LatentConfig
from models.rotary import rotary_tables
from models.rotary_frequencies import rope_frequencies
from models.yarn import YarnConfig

V2 = YarnConfig(factor=40.0, original_positions=4096, mscale=0.707, mscale_all_dim=0.707)


def tiny(yarn: YarnConfig | None) -> DecoderConfig:
    return deepseek_config(
        vocab_size=31,
        width=32,
        layers=2,
        heads=2,
        head_width=8,
        feed_forward_width=48,
        latent=LatentConfig(16, 16, 8),
        experts=ExpertsConfig(routed=4, shared=1, per_token=2, width=8, dense_layers=1),
        yarn=yarn,
        initial_std=0.2,
    )


def test_temperatures_are_those_computed_by_hand() -> None:
    assert V2.temperature(0.707) == pytest.approx(1.2608, abs=5e-5)
    assert V2.temperature(1.0) == pytest.approx(1.3689, abs=5e-5)
    assert V2.temperature(1.0) == 0.1 * math.log(40) + 1
    assert dataclasses.replace(V2, factor=1.0).temperature(1.0) == 1.0


def test_magnitude_is_one_exactly_where_the_mscales_agree() -> None:
    assert V2.magnitude == 1.0
    for mscale, all_dim in ((1.0, 0.0), (1.0, 0.707), (0.0, 1.0)):
        yarn = dataclasses.replace(V2, mscale=mscale, mscale_all_dim=all_dim)
        assert yarn.magnitude != 1.0
        tables = rotary_tables(
            torch.zeros(1, 1), rotary_width=8, base=1e4, dtype=torch.float32, yarn=yarn
        )
        torch.testing.assert_close(tables.cos, torch.full((1, 1, 1, 4), yarn.magnitude))


def test_the_softmax_scale_takes_the_second_factor_squared() -> None:
    def scale(all_dim: float) -> float:
        yarn = dataclasses.replace(V2, mscale_all_dim=all_dim)
        config = dataclasses.replace(DEEPSEEK["v2-lite"], yarn=yarn)
        with torch.device("meta"):
            return LatentAttention(config).scale

    assert scale(0.0) == pytest.approx(0.0721688, abs=5e-8)
    assert scale(0.707) == pytest.approx(0.0721688 * 1.2608**2, rel=1e-4)


@pytest.mark.parametrize("width", [16, 64])
def test_fast_channels_stay_and_slow_ones_are_divided(width: int) -> None:
    plain = rope_frequencies(width, 1e4)
    # Angles at position 1 are the frequencies themselves.
    tables = rotary_tables(
        torch.ones(1, 1), rotary_width=width, base=1e4, dtype=torch.float32, yarn=V2
    )
    stretched = torch.atan2(tables.sin, tables.cos).flatten()

    def pair(turns: float) -> float:
        return width * math.log(4096 / (2 * math.pi * turns)) / (2 * math.log(1e4))

    low, high = max(math.floor(pair(32)), 0), min(math.ceil(pair(1)), width - 1)
    assert 0 <= low < high <= width - 1
    pairs = torch.arange(width // 2)
    torch.testing.assert_close(stretched[pairs <= low], plain[pairs <= low], rtol=0, atol=1e-6)
    torch.testing.assert_close(stretched[pairs >= high], plain[pairs >= high] / 40)
    between = (pairs > low) & (pairs < high)
    assert (stretched[between] < plain[between]).all()
    assert (stretched[between] > plain[between] / 40).all()


def test_position_0_does_not_know_the_factor() -> None:
    """The first token attends to itself alone, so neither factor can show."""
    ids = torch.tensor([[3]])
    first = DecoderLM(tiny(None), torch.Generator().manual_seed(0))(ids)
    for factor in (2.0, 40.0):
        yarn = YarnConfig(factor=factor, original_positions=32, mscale_all_dim=1.0)
        again = DecoderLM(tiny(yarn), torch.Generator().manual_seed(0))(ids)
        torch.testing.assert_close(again, first, atol=1e-6, rtol=0)


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"factor": 0.0}, {"original_positions": 0}, {"beta_slow": 40.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            dataclasses.replace(V2, **wrong)
