"""The endpoint over HTTP: scores, comparisons and completions whose scheme is in the request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
import torch.nn.functional as F
from served_lm import Serving, serving_lm

from heliostat.runs.bundle import Bundle, load_bundle, save_bundle
from heliostat.runs.card import Card
from heliostat.runs.inputs import Input
from heliostat.serve.generation.config import GenerationConfig
from heliostat.serve.generation.served import ServedLanguageModel
from heliostat.storage import Location
from jobs.rerope.bundle import KIND, RotaryModel, open_model
from jobs.rerope.config import Config
from jobs.rerope.endpoint import RotaryEndpoint, ServedRotaryModel, endpoint
from jobs.rerope.reading import Scored, score
from jobs.rerope.shapes import Shape, build, shape_to_json
from models.decoder import Decoder
from models.decoder_config import llama_config
from models.gau_config import GauConfig
from models.planned_lm import plan_for
from models.positions import SCHEME_NAMES, PositionScheme

L = 16
TEXT = "def f(x):\n    return f(x - 1) + f(x - 2)\n" * 3
REROPE = {"name": "rerope", "window": 6, "log_n": "post"}


LLAMA = llama_config(
    vocab_size=256,
    width=32,
    layers=2,
    heads=4,
    key_value_heads=2,
    feed_forward_width=48,
    max_positions=L,
)
GAU = GauConfig(vocab_size=256, width=24, layers=2, head_width=16)


def write_bundle(
    folder: Path, *, name: str = "tiny", log_n: str = "none", shape: Shape = LLAMA
) -> Path:
    model = build(shape, torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(4.0)
    recorded = {
        "name": name,
        "train_length": L,
        "rotary_base": shape.rotary_base,
        "layout": "half",
        "head_width": shape.head_width,
        "log_n": log_n,
        "training_scheme": asdict(PositionScheme("rope", log_n=log_n)),  # type: ignore[arg-type]
    }
    card = Card("Tiny", "Nothing.", [Input("n", "generated", "d", "l")], {}, "All.", "Here.", "No")
    save_bundle(
        Location.of(folder),
        weights=model.state_dict(),
        parts={"shape.json": shape_to_json(shape), "positions.json": recorded},
        card=card,
        kind=KIND,
        metadata={},
    )
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("rerope") / "bundle")


@pytest.fixture(scope="module")
def opened(bundle: Path) -> RotaryModel:
    return open_model(load_bundle(bundle))


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[Serving]:
    generation = GenerationConfig(context=512, cache_tokens=2048, prefill_chunk=24)
    with serving_lm([(bundle, 100.0)], endpoint=RotaryEndpoint(generation)) as serving:
        yield serving


def ask(served: Serving, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    answer = requests.post(f"{served.url}/rerope/v1/{path}", json=body, timeout=60)
    return answer.status_code, answer.json()


def logprobs(opened: RotaryModel, scheme: PositionScheme, tokens: list[int]) -> list[float]:
    plan = plan_for(opened.shape, scheme, train_length=L, length=len(tokens) - 1)
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        logits = opened.model(ids[:, :-1], position_plan=plan)
        assert isinstance(logits, torch.Tensor)
        return (-F.cross_entropy(logits[0], ids[0, 1:], reduction="none")).tolist()


def test_a_score_is_that_of_the_scheme(served: Serving, opened: RotaryModel) -> None:
    status, answer = ask(served, "score", {"text": TEXT, "scheme": REROPE, "last": 10})
    assert status == 200
    scheme = PositionScheme("rerope", window=6, log_n="post")
    expected = logprobs(opened, scheme, list(TEXT.encode()))
    assert answer["token_logprobs"] == pytest.approx(expected[-10:], abs=1e-5)
    assert answer["loss_nats"] == pytest.approx(-sum(expected[-10:]) / 10, abs=1e-5)
    assert answer["n_tokens"] == len(TEXT)
    assert answer["train_length"] == L
    assert answer["max_relative_position"] == 6.0
    assert answer["extrapolating"] is False
    assert answer["scheme"]["window"] == 6
    assert 0.0 <= answer["accuracy"] <= 1.0


def test_half_precision_reads_and_writes_nearly_the_same(bundle: Path, served: Serving) -> None:
    generation = GenerationConfig(context=512, cache_tokens=2048, precision="bf16")
    body = {"text": TEXT, "scheme": REROPE}
    grown = {"text": TEXT, "scheme": REROPE, "max_new_tokens": 8, "temperature": 0}
    with serving_lm([(bundle, 100.0)], endpoint=RotaryEndpoint(generation)) as halved:
        _, rounded = ask(halved, "score", body)
        _, written = ask(halved, "generate", grown)
    _, exact = ask(served, "score", body)
    assert 0 < abs(rounded["loss_nats"] - exact["loss_nats"]) < 0.01 * exact["loss_nats"]
    assert written["cache_bytes"] == ask(served, "generate", grown)[1]["cache_bytes"] / 2


def test_texts_are_scored_together_as_each_would_be_alone(
    served: Serving, opened: RotaryModel
) -> None:
    schemes = (PositionScheme("rerope", window=6, log_n="post"), PositionScheme("rope"))
    texts = [TEXT[: 20 + 7 * place] for place in range(12)]
    bodies = [
        {"text": text, "scheme": REROPE if place % 2 else {"name": "rope"}}
        for place, text in enumerate(texts)
    ]
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(lambda body: ask(served, "score", body), bodies))
    for place, (text, (status, answer)) in enumerate(zip(texts, answers, strict=True)):
        assert status == 200
        expected = logprobs(opened, schemes[1 - place % 2], list(text.encode()))
        assert answer["token_logprobs"] == pytest.approx(expected, abs=1e-5)


def test_texts_of_one_scheme_and_about_one_length_are_rows_of_one_batch(
    opened: RotaryModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rerope, expanded = PositionScheme("rerope", window=6), PositionScheme("ntk", interval=4.0)
    wanted = [
        (rerope, 40, None),
        (PositionScheme("rope"), 34, 5),
        (rerope, 33, 100),
        (PositionScheme("ntk"), 64, 3),
        (PositionScheme("ntk"), 33, 3),
        (expanded, 45, None),
        (expanded, 60, None),
        (rerope, 9, None),
    ]
    texts = [
        Scored(
            tuple(TEXT.encode()[:length]),
            plan_for(opened.shape, scheme, train_length=L, length=length - 1),
            last,
        )
        for scheme, length, last in wanted
    ]
    shapes = []
    own = type(opened.model.decoder).forward

    def forward(decoder: Decoder, ids: torch.Tensor, **how: Any) -> torch.Tensor:
        shapes.append(tuple(ids.shape))
        return own(decoder, ids, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "forward", forward)
        scores = score(opened, texts)
    # ntk without k has another k for each length; 9 tokens are not filled up to 39.
    assert sorted(shapes) == [(1, 8), (1, 32), (1, 33), (1, 63), (2, 39), (2, 59)]
    for (scheme, length, last), found in zip(wanted, scores, strict=True):
        expected = logprobs(opened, scheme, list(TEXT.encode()[:length]))
        assert found.logprobs == pytest.approx(expected[-last:] if last else expected, abs=1e-5)
        assert len(found.hits) == len(found.logprobs)


def test_a_text_for_which_too_many_wait_is_refused_before_it_is_read(bundle: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    class Slow(ServedRotaryModel):
        def predict(self, items: Sequence[Any]) -> Sequence[Any]:
            if isinstance(items[0], Scored):
                begun.set()
                assert go.wait(60)
            return super().predict(items)

    class SlowEndpoint(RotaryEndpoint):
        def open(self, bundle: Bundle) -> ServedLanguageModel:
            found = super().open(bundle)
            return Slow(found.named, self._generation)

    endpoint_ = SlowEndpoint(GenerationConfig(context=512, cache_tokens=2048, prefill_chunk=24))
    body = {"text": TEXT, "scheme": REROPE}
    with (
        serving_lm([(bundle, 100.0)], endpoint=endpoint_, queue=1) as serving,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(ask, serving, "score", body)
        assert begun.wait(60)
        second = pool.submit(ask, serving, "score", body)
        while not serving.service.waiting:
            time.sleep(0.01)
        for path, more in (("score", body), ("compare", {"text": TEXT, "schemes": [REROPE]})):
            status, refusal = ask(serving, path, more)
            assert (status, refusal["error"]["code"]) == (503, "overloaded")
        go.set()
        assert first.result(60)[0] == second.result(60)[0] == 200


def test_the_answer_says_what_computed_it(served: Serving) -> None:
    for scheme, backend in ((REROPE, "merge"), ({"name": "yarn"}, "plain")):
        body = {"text": TEXT, "scheme": scheme}
        answer = requests.post(f"{served.url}/rerope/v1/score", json=body, timeout=60)
        assert answer.headers["x-attention-backend"] == backend


def test_k_of_an_expanded_scheme_follows_the_length_of_a_score(served: Serving) -> None:
    tokens = list(TEXT.encode())[: 4 * L + 1]
    _, answer = ask(served, "score", {"tokens": tokens, "scheme": {"name": "ntk"}})
    assert answer["scheme"]["k"] == 4.0
    assert answer["extrapolating"] is False


def test_a_comparison_has_a_row_for_each_scheme_in_order(
    served: Serving, opened: RotaryModel
) -> None:
    schemes = [
        {"name": "rope"},
        REROPE,
        {"name": "leaky_rerope", "window": 6, "k": 2},
        {"name": "dca"},
        {"name": "rerope", "window": 16},
        {"name": "nope"},
    ]
    status, answer = ask(served, "compare", {"text": TEXT, "schemes": schemes})
    assert status == 200
    assert [row["scheme"]["name"] for row in answer["rows"]] == [one["name"] for one in schemes]
    for scheme, row in zip(schemes, answer["rows"], strict=True):
        _, alone = ask(served, "score", {"text": TEXT, "scheme": scheme})
        assert row["loss_nats"] == pytest.approx(alone["loss_nats"], abs=1e-6)
    assert [row["extrapolating"] for row in answer["rows"]] == [
        True,
        False,
        True,
        False,
        True,
        False,
    ]
    assert [row["window_not_recommended"] for row in answer["rows"]] == [False] * 4 + [True, False]


@pytest.mark.parametrize(
    ("scheme", "ours", "ring_slots"),
    [
        (REROPE, PositionScheme("rerope", window=6, log_n="post"), 6),
        ({"name": "yarn", "k": 8}, PositionScheme("yarn", interval=8.0), 0),
        (
            {"name": "self_extend", "window": 6, "group": 4},
            PositionScheme("self_extend", window=6, group=4),
            6,
        ),
    ],
)
def test_a_greedy_completion_is_that_of_the_model(
    served: Serving,
    opened: RotaryModel,
    scheme: dict[str, Any],
    ours: PositionScheme,
    ring_slots: int,
) -> None:
    body = {"text": TEXT, "scheme": scheme, "max_new_tokens": 12, "temperature": 0}
    status, answer = ask(served, "generate", body)
    assert status == 200
    tokens = list(TEXT.encode())
    plan = plan_for(opened.shape, ours, train_length=L, length=512)
    with torch.inference_mode():
        for expected in answer["tokens"]:
            logits = opened.model(torch.tensor([tokens]), position_plan=plan)
            assert isinstance(logits, torch.Tensor)
            assert logits[0, -1].argmax() == expected
            tokens.append(expected)
    assert answer["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": len(TEXT), "completion_tokens": 12}
    assert set(answer["timing"]) >= {"prefill_ms", "decode_ms_per_token"}
    # Two layers keep a key and a value of two heads for each token, and a ring of near keys.
    ring = 2 * ring_slots * 2 * 8 * 4
    assert answer["cache_bytes"] == (len(TEXT) + 11) * 2 * 2 * 2 * 8 * 4 + ring


def test_a_stream_has_an_object_for_each_token(served: Serving) -> None:
    body = {"text": TEXT, "scheme": REROPE, "max_new_tokens": 9, "seed": 3}
    _, whole = ask(served, "generate", body)
    with requests.post(
        f"{served.url}/rerope/v1/generate", json={**body, "stream": True}, stream=True, timeout=60
    ) as answer:
        lines = [line.decode() for line in answer.iter_lines() if line]
    parts = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert [token for part in parts for token in part["tokens"]] == whole["tokens"]
    assert parts[-1]["finish_reason"] == "length"


def test_completions_do_not_depend_on_their_mates(served: Serving) -> None:
    bodies = [
        {
            "text": TEXT[: 20 + 9 * row],
            "scheme": REROPE,
            "max_new_tokens": 10,
            "temperature": 0,
        }
        for row in range(6)
    ]
    alone = [ask(served, "generate", body)[1]["tokens"] for body in bodies]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda body: ask(served, "generate", body)[1]["tokens"], bodies))
    assert together == alone


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("score", {"text": TEXT, "scheme": {"name": "rerope", "window": 0}}, 400, "scheme.window"),
        ("score", {"text": TEXT, "scheme": {"name": "rerope"}}, 400, "scheme.window"),
        (
            "score",
            {"text": TEXT, "scheme": {"name": "leaky_rerope", "window": 4, "k": 1}},
            400,
            "scheme.k",
        ),
        ("generate", {"text": TEXT, "scheme": {"name": "ntk"}}, 400, "scheme.k"),
        ("score", {"tokens": [1, 256]}, 400, "tokens.1"),
        ("score", {"tokens": ["1", 2]}, 400, "tokens.0"),
        ("score", {"text": TEXT, "schema": {"name": "rope"}}, 400, "schema"),
        ("score", {"text": ""}, 400, "text"),
        ("score", {"text": "x"}, 400, "text"),
        ("score", {"text": TEXT, "scheme": {"name": "alibi"}}, 400, "scheme.name"),
        (
            "score",
            {"text": TEXT, "scheme": {"name": "inv_leaky_rerope", "window": 4, "k": 0.1}},
            400,
            "scheme",
        ),
        ("score", {"text": "x" * 600}, 413, "text"),
        ("generate", {"text": TEXT, "max_new_tokens": 4000}, 413, "text"),
        ("score", {"text": TEXT, "scheme": {"log_n": "train"}}, 409, "scheme.log_n"),
        ("score", {"text": TEXT, "strict": True}, 400, "scheme"),
        ("generate", {"text": TEXT, "max_new_tokens": 0}, 400, "max_new_tokens"),
        ("score", {"text": TEXT, "model": "other"}, 404, "model"),
    ],
)
def test_what_cannot_be_done_is_said_with_its_field(
    served: Serving, path: str, body: dict[str, Any], status: int, field: str
) -> None:
    found, answer = ask(served, path, body)
    assert (found, answer["error"]["field"]) == (status, field), answer


def test_an_unknown_scheme_is_answered_with_the_valid_names(served: Serving) -> None:
    _, answer = ask(served, "score", {"text": TEXT, "scheme": {"name": "alibi"}})
    assert all(name in answer["error"]["message"] for name in SCHEME_NAMES)


def test_force_reads_against_the_training(served: Serving) -> None:
    body = {"text": TEXT, "scheme": {"name": "rope", "log_n": "train"}, "force": True}
    assert ask(served, "score", body)[0] == 200


def test_a_model_trained_with_log_n_reads_with_it(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle", log_n="train")
    with serving_lm([(folder, 100.0)], endpoint=endpoint(Config())) as serving:
        _, answer = ask(serving, "score", {"text": TEXT})
        assert answer["scheme"]["log_n"] == "train"
        status, _ = ask(serving, "score", {"text": TEXT, "scheme": {"log_n": "none"}})
        assert status == 409
        models = requests.get(f"{serving.url}/rerope/v1/models", timeout=60).json()["models"]
        assert models[0]["train_length"] == L
        assert models[0]["log_n"] == "train"


def test_gated_attention_units_are_served_under_every_kind_of_scheme(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "gau", shape=GAU)
    opened = open_model(load_bundle(bundle))
    generation = GenerationConfig(context=512, cache_tokens=2048, prefill_chunk=24)
    schemes = (
        PositionScheme("rope"),
        PositionScheme("rerope", window=6, log_n="post"),
        PositionScheme("dca"),
    )
    with serving_lm([(bundle, 100.0)], endpoint=RotaryEndpoint(generation)) as serving:
        models = requests.get(f"{serving.url}/rerope/v1/models", timeout=60).json()["models"]
        assert models[0]["backbone"] == "gau"
        for scheme in schemes:
            asked = {"name": scheme.name, "window": scheme.window, "log_n": scheme.log_n}
            body = {"text": TEXT, "scheme": asked}
            status, answer = ask(serving, "score", body)
            assert status == 200, answer
            expected = logprobs(opened, scheme, list(TEXT.encode()))
            assert answer["token_logprobs"] == pytest.approx(expected, abs=1e-4)
            body |= {"max_new_tokens": 6, "temperature": 0}  # type: ignore[dict-item]
            written = list(TEXT.encode())
            plan = plan_for(opened.shape, scheme, train_length=L, length=512)
            for token in ask(serving, "generate", body)[1]["tokens"]:
                with torch.inference_mode():
                    logits = opened.model(torch.tensor([written]), position_plan=plan)
                assert isinstance(logits, torch.Tensor)
                assert logits[0, -1].argmax() == token
                written.append(token)
