"""A language model's own routes over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from served_lm import NAME, Serving, serving_lm, write_lm_bundle

from heliostat.runs.bundle import load_bundle
from heliostat.serve.generation.config import GenerationConfig
from jobs.pretrained.hf_bundle import LanguageModel, open_language_model

PREFIX = "/language_model/v1"
PROMPT = "the quick brown fox"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm") / "bundle"
    write_lm_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[Serving]:
    config = GenerationConfig(cache_tokens=1000, prefill_chunk=32)
    with serving_lm([(bundle, 100.0)], generation=config) as serving:
        yield serving


@pytest.fixture(scope="module")
def opened(bundle: Path) -> LanguageModel:
    return open_language_model(load_bundle(bundle))


def ask(served: Serving, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    answer = requests.post(f"{served.url}{PREFIX}/{path}", json=body, timeout=60)
    return answer.status_code, answer.json()


def test_a_completion_tells_usage_timing_and_cache(served: Serving, opened: LanguageModel) -> None:
    body = {"model": NAME, "prompt": PROMPT, "max_tokens": 20, "temperature": 0, "logprobs": 2}
    status, answer = ask(served, "completions", body)
    assert status == 200
    (choice,) = answer["choices"]
    prompt = opened.codec.encode(PROMPT)
    assert len(choice["tokens"]) == 20
    assert choice["finish_reason"] == "length"
    assert [one["token"] for one in choice["logprobs"]] == choice["tokens"]
    assert all(one["top"][0] == [one["token"], one["logprob"]] for one in choice["logprobs"])
    with torch.inference_mode():
        logits = opened.model(torch.tensor([prompt + choice["tokens"]]))[0].log_softmax(1)
    expected = [
        float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(choice["tokens"])
    ]
    assert [one["logprob"] for one in choice["logprobs"]] == pytest.approx(expected, abs=1e-5)
    assert answer["usage"] == {"prompt_tokens": len(prompt), "completion_tokens": 20}
    assert set(answer["timing"]) == {"queue_ms", "prefill_ms", "decode_ms_per_token"}
    # Keys and values of 2 layers, 2 heads of 8 numbers, 4 bytes each; the last is not kept.
    assert answer["cache"]["bytes_per_token"] == 2 * 2 * 2 * 8 * 4
    assert answer["cache"]["tokens"] == len(prompt) + 19


def test_a_stream_has_an_object_for_each_token_and_ends_with_done(served: Serving) -> None:
    body = {"prompt": PROMPT, "max_tokens": 15, "seed": 4}
    _, whole = ask(served, "completions", body)
    with requests.post(
        f"{served.url}{PREFIX}/completions", json={**body, "stream": True}, stream=True, timeout=60
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.decode() for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    parts = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert [part["choices"][0]["tokens"] for part in parts[:-1]] == [
        [token] for token in whole["choices"][0]["tokens"]
    ]
    assert "".join(part["choices"][0]["text"] for part in parts) == whole["choices"][0]["text"]
    assert parts[-1]["choices"][0]["finish_reason"] == "length"
    assert parts[-1]["usage"] == whole["usage"]
    assert all(part["usage"] is None for part in parts[:-1])


def test_a_score_is_the_mean_loss_of_the_text(served: Serving, opened: LanguageModel) -> None:
    tokens = opened.codec.encode("once upon a time there was a small model " * 6)
    with torch.inference_mode():
        logits = opened.model(torch.tensor([tokens]))[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[1:]))
    for body in ({"tokens": tokens}, {"text": "once upon a time there was a small model " * 6}):
        status, answer = ask(served, "score", body)
        assert status == 200
        assert answer["loss_nats"] == pytest.approx(float(expected), abs=1e-5)
        assert answer["n_tokens"] == len(tokens)
        assert len(answer["token_logprobs"]) == len(tokens) - 1
    assert ask(served, "score", {"tokens": [3]})[1]["loss_nats"] is None


def test_models_say_what_can_be_asked_for(served: Serving) -> None:
    assert ask(served, "score", {"tokens": [3, 4]})[0] == 200
    answer = requests.get(f"{served.url}{PREFIX}/models", timeout=30).json()
    (model,) = answer["models"]
    assert (model["name"], model["vocab_size"], model["has_chat"]) == (NAME, 320, True)
    assert model["engine"]["pages"] == -(-1000 // 16)
    assert model["engine"]["waiting"] == model["engine"]["pages_held"] == 0
    assert model["longest"] == model["context"] == 600
    health = requests.get(f"{served.url}{PREFIX}/healthz", timeout=30).json()
    assert health["status"] == "ok"


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("completions", {"prompt": "a", "temperature": -0.1}, 400, "temperature"),
        ("completions", {"prompt": ""}, 400, "prompt"),
        ("completions", {"prompt": [4, 320]}, 400, "prompt.1"),
        ("completions", {"prompt": {"a": 1}}, 400, "prompt"),
        ("completions", {"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
        ("completions", {"prompt": "a", "max_tokens": 9000}, 400, "max_tokens"),
        ("completions", {"prompt": "a", "logprobs": 21}, 400, "logprobs"),
        ("completions", {"prompt": "a", "stop": [""]}, 400, "stop.0"),
        ("completions", {"prompt": "a", "max_tokens": 600}, 413, "max_tokens"),
        ("completions", {"prompt": "a", "model": "other"}, 404, "model"),
        ("score", {"text": "a", "tokens": [1]}, 400, None),
        ("score", {"tokens": [1] * 601}, 413, "tokens"),
        ("score", {"text": ""}, 400, "text"),
    ],
)
def test_a_mistake_has_a_status_and_names_its_field(
    served: Serving, path: str, body: Any, status: int, field: str | None
) -> None:
    got, answer = ask(served, path, body)
    assert (got, answer["error"]["field"]) == (status, field)
    assert set(answer["error"]) == {"code", "message", "field"}


def test_a_body_that_is_no_json_is_malformed(served: Serving) -> None:
    answer = requests.post(
        f"{served.url}{PREFIX}/completions",
        data=b'{"prompt": ',
        headers={"content-type": "application/json"},
        timeout=30,
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed")


def test_the_page_shows_the_card_and_a_form(served: Serving) -> None:
    page = requests.get(served.url, timeout=30).text
    assert "Language model" in page
    assert "The capital of France" in page
    described = requests.get(f"{served.url}/openapi.json", timeout=30).json()["paths"]
    assert {f"{PREFIX}/completions", f"{PREFIX}/score", "/v1/chat/completions"} <= set(described)
    assert requests.get(f"{served.url}/docs", timeout=30).status_code == 200
