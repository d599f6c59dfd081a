"""A bundle with experts over HTTP: completions from a latent cache, scores, and the routing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
import torch
from mixture_task import MODEL
from openai import OpenAI
from served_lm import Serving, engine_of, serving_lm, wait_until

from heliostat.errors import BundleError
from heliostat.runs.bundle import load_bundle, save_bundle
from heliostat.runs.card import Card
from heliostat.runs.inputs import Input
from heliostat.serve.generation.config import GenerationConfig
from heliostat.storage import Location
from jobs.mla_moe.bundle import DECODER, KIND, TOKENS, open_language_model
from jobs.mla_moe.endpoint import MixtureEndpoint
from jobs.mla_moe.model_config import decoder_config
from models.decoder import DecoderLM

PREFIX = "/mla_moe/v1"
PROMPT = "def main():"


def write_bundle(folder: Path, kind: str = "bytes") -> Path:
    decoder = decoder_config(MODEL)
    model = DecoderLM(decoder, torch.Generator().manual_seed(0))
    save_bundle(
        Location.of(folder),
        weights=model.state_dict(),
        parts={DECODER: asdict(decoder), TOKENS: {"kind": kind, "end_of_text": 0}},
        card=Card(
            title="tiny",
            what="Random weights.",
            inputs=[Input("weights", "generated", "random", "Apache-2.0")],
            metrics={},
            limits="None known.",
            how_made="Drawn.",
            licence="Apache-2.0",
        ),
        kind=KIND,
        metadata={},
    )
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("lm") / "bundle")


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[Serving]:
    endpoint = MixtureEndpoint(GenerationConfig(cache_tokens=1000, prefill_chunk=32))
    with serving_lm([(bundle, 100.0)], endpoint=endpoint) as serving:
        yield serving


@pytest.fixture(scope="module")
def model(bundle: Path) -> DecoderLM:
    return open_language_model(load_bundle(bundle))


def ask(served: Serving, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    answer = requests.post(f"{served.url}{PREFIX}/{path}", json=body, timeout=60)
    return answer.status_code, answer.json()


def test_a_completion_is_greedy_over_the_latent_cache(served: Serving, model: DecoderLM) -> None:
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    status, answer = ask(served, "completions", body)
    assert status == 200
    tokens = list(PROMPT.encode())
    with torch.inference_mode():
        for _ in answer["choices"][0]["tokens"]:
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert answer["choices"][0]["tokens"] == tokens[len(PROMPT) :]
    # 3 layers of a latent of 16 and a rotary key of 8, in float32.
    assert answer["cache"]["bytes_per_token"] == 3 * (16 + 8) * 4


def test_a_score_is_that_of_one_forward(served: Serving, model: DecoderLM) -> None:
    status, answer = ask(served, "score", {"text": PROMPT})
    assert status == 200
    ids = torch.tensor([list(PROMPT.encode())])
    with torch.inference_mode():
        logits = model(ids)[0, :-1].log_softmax(-1)
    expected = logits.gather(1, ids[0, 1:, None])[:, 0]
    assert answer["token_logprobs"] == pytest.approx(expected.tolist(), abs=1e-4)


def test_half_precision_halves_the_cache_and_keeps_the_choice_of_experts(
    bundle: Path, model: DecoderLM
) -> None:
    generation = GenerationConfig(cache_tokens=1000, precision="bf16", context=64)
    ids = torch.tensor([list(PROMPT.encode())])
    with torch.inference_mode():
        logits = model(ids)[0, :-1].log_softmax(-1)
    exact = logits.gather(1, ids[0, 1:, None])[:, 0]
    with serving_lm([(bundle, 100.0)], endpoint=MixtureEndpoint(generation)) as serving:
        _, answer = ask(serving, "completions", {"prompt": PROMPT, "max_tokens": 4})
        assert answer["cache"]["bytes_per_token"] == 3 * (16 + 8) * 2
        _, scored = ask(serving, "score", {"text": PROMPT})
        # bfloat16 keeps 8 bits: not the same numbers, but the same model.
        differences = (torch.tensor(scored["token_logprobs"]) - exact).abs()
        assert 0 < differences.max() < 0.05 * exact.abs().max()
        status, refused = ask(serving, "completions", {"prompt": PROMPT, "max_tokens": 64})
        assert (status, refused["error"]["field"]) == (413, "max_tokens")


def test_the_routing_of_a_text(served: Serving, model: DecoderLM) -> None:
    status, answer = ask(served, "routing", {"text": PROMPT})
    assert status == 200
    assert [layer["layer"] for layer in answer["layers"]] == [1, 2]
    for layer in answer["layers"]:
        assert sum(layer["load"]) == len(PROMPT) * 2
        assert layer["maxvio"] == pytest.approx(max(layer["load"]) / (len(PROMPT) / 4) - 1)
        assert 1 <= layer["groups_per_token_mean"] <= 2
    tokens = list(PROMPT.encode())
    status, some = ask(served, "routing", {"tokens": tokens, "layers": [2]})
    assert (status, some["layers"]) == (200, answer["layers"][1:])


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"text": "a", "layers": [0]}, 400, "layers"),
        ({"text": ""}, 400, "text"),
        ({"tokens": [256]}, 400, "tokens.0"),
        ({"tokens": ["5"]}, 400, "tokens.0"),
        ({"text": "a", "layer": [1]}, 400, "layer"),
        ({"text": "a", "model": "other"}, 404, "model"),
        ({"text": "a" * 3000}, 413, "text"),
    ],
)
def test_mistakes_are_told(served: Serving, body: dict[str, Any], status: int, field: str) -> None:
    found, answer = ask(served, "routing", body)
    assert (found, answer["error"]["field"]) == (status, field)


def test_a_model_of_other_tokens_is_sent_to_the_general_endpoint(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "ids", kind="ids"))
    with pytest.raises(BundleError, match=r"export it, put its tokenizer\.json into the folder"):
        MixtureEndpoint(GenerationConfig()).open(bundle)


def test_the_openai_client_streams_while_another_cancels_and_a_third_sends_too_much(
    served: Serving,
) -> None:
    client = OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0)
    model = client.models.list().data[0]
    engine = engine_of(served)
    asked: dict[str, Any] = {"model": model.id, "prompt": PROMPT, "seed": 5, "max_tokens": 60}
    whole = client.completions.create(**asked).choices[0]
    assert whole.text
    said: list[str] = []

    def read() -> None:
        said.extend(
            part.choices[0].text for part in client.completions.create(**asked, stream=True)
        )

    reader = threading.Thread(target=read)
    reader.start()
    leaving = client.completions.create(
        model=model.id, prompt="for i in range(3):", max_tokens=60, seed=2, stream=True
    )
    next(iter(leaving))
    leaving.close()
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model=model.id, prompt="x = 1\n" * 700, max_tokens=5)
    assert caught.value.status_code == 413
    reader.join(60)
    assert "".join(said) == whole.text
    wait_until(lambda: engine.pages_held == 0)
    assert engine.statistics.cancelled >= 1
