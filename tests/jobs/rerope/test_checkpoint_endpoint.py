"""A checkpoint in Hugging Face layout, read and continued under position schemes over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
import torch.nn.functional as F
from served_lm import NAME, Serving, serving_lm, write_lm_bundle

from heliostat.config.jobs import find_job
from heliostat.errors import BundleError
from heliostat.runs.bundle import load_bundle
from heliostat.serve.generation.config import GenerationConfig
from jobs.pretrained.hf_bundle import LanguageModel, open_language_model
from jobs.rerope.endpoint import RotaryEndpoint
from models.planned_lm import plan_for
from models.positions import PositionScheme

L = 32
TEXT = "the quick brown fox jumps over the lazy dog " * 12
REROPE = {"name": "rerope", "window": 12, "log_n": "post"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "bundle"
    write_lm_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def opened(bundle: Path) -> LanguageModel:
    return open_language_model(load_bundle(bundle))


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[Serving]:
    endpoint = RotaryEndpoint(GenerationConfig(context=512, cache_tokens=2048), trained_length=L)
    with serving_lm([(bundle, 100.0)], endpoint=endpoint) as serving:
        yield serving


def ask(served: Serving, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    answer = requests.post(f"{served.url}/rerope/v1/{path}", json=body, timeout=60)
    return answer.status_code, answer.json()


def logits(opened: LanguageModel, tokens: list[int]) -> torch.Tensor:
    scheme = PositionScheme("rerope", window=12, log_n="post")
    plan = plan_for(opened.decoder, scheme, train_length=L, length=len(tokens))
    with torch.inference_mode():
        found = opened.model(torch.tensor([tokens]), position_plan=plan)
    assert isinstance(found, torch.Tensor)
    return found[0]


def test_its_text_is_scored_with_its_own_tokens(served: Serving, opened: LanguageModel) -> None:
    status, answer = ask(served, "score", {"text": TEXT, "scheme": REROPE})
    assert status == 200
    tokens = opened.codec.encode(TEXT)
    assert answer["n_tokens"] == len(tokens) > 2 * L
    expected = -F.cross_entropy(
        logits(opened, tokens)[:-1], torch.tensor(tokens[1:]), reduction="none"
    )
    assert answer["token_logprobs"] == pytest.approx(expected.tolist(), abs=1e-4)
    assert answer["train_length"] == L
    assert answer["extrapolating"] is False
    _, plain = ask(served, "score", {"text": TEXT})
    assert plain["extrapolating"] is True


def test_it_goes_on_beyond_its_training_length_under_a_scheme(
    served: Serving, opened: LanguageModel
) -> None:
    body = {"text": TEXT, "scheme": REROPE, "max_new_tokens": 8, "temperature": 0}
    status, answer = ask(served, "generate", body)
    assert status == 200
    assert answer["model"] == NAME
    tokens = opened.codec.encode(TEXT)
    for _ in answer["tokens"]:
        tokens.append(int(logits(opened, tokens)[-1].argmax()))
    assert answer["tokens"] == tokens[-len(answer["tokens"]) :]
    assert answer["extrapolating"] is False


def test_the_length_of_its_config_counts_where_none_is_given(
    bundle: Path, opened: LanguageModel
) -> None:
    served = RotaryEndpoint(GenerationConfig(context=512)).open(load_bundle(bundle))
    assert served.about()["train_length"] == opened.decoder.max_positions


def test_the_command_line_takes_both_kinds_and_no_other(bundle: Path) -> None:
    kinds = find_job("rerope").served_kinds()
    assert load_bundle(bundle, kind=kinds).kind == "language_model"
    assert find_job("mla_moe").served_kinds() == ("mla_moe",)
    with pytest.raises(BundleError, match="the kind mla_moe is needed here"):
        load_bundle(bundle, kind=find_job("mla_moe").served_kinds())
