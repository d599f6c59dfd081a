"""A model with windowed layers: its config, its training, its bundle, how it is read and served."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import requests
import torch
from served_lm import Serving, serving_lm

from heliostat.config.jobs import find_job
from heliostat.config.load import load_config
from heliostat.errors import ConfigError
from heliostat.runs.bundle import load_bundle, save_bundle
from heliostat.runs.card import Card
from heliostat.runs.inputs import Input
from heliostat.serve.generation.config import GenerationConfig
from heliostat.storage import Location
from jobs.rerope.bundle import RotaryModel, open_model
from jobs.rerope.config import Config
from jobs.rerope.endpoint import RotaryEndpoint
from jobs.rerope.evaluation import Scoring, scores_at_the_end
from jobs.rerope.shapes import build, shape_to_json
from jobs.rerope.tasks import VARIANTS, model_shape, task_of
from jobs.rerope.trials import Trial
from models.decoder import DecoderLM
from models.decoder_config import DecoderConfig
from models.hybrid_config import HybridConfig
from models.planned_lm import plan_for
from models.positions import PositionScheme

L, WINDOW = 32, 12
HYBRID = [f"model.sliding_window={WINDOW}", "model.full_attention_layers=1"]
TINY = [
    f"length={L}",
    "model.width=32",
    "model.layers=3",
    "model.heads=4",
    "model.key_value_heads=2",
    "model.feed_forward_width=48",
    "tracker.enabled=false",
]
TEXT = "def f(x):\n    return f(x - 1) + f(x - 2)\n" * 3
REROPE = PositionScheme("rerope", window=10, log_n="post")


def config_of(*changes: str) -> Config:
    config = load_config(find_job("rerope"), None, [*TINY, *changes]).config
    assert isinstance(config, Config)
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (HYBRID[:1], "sliding_window is 12 and full_attention_layers is None; give both"),
        (HYBRID[1:], "sliding_window is None and full_attention_layers is 1; give both"),
        ([*HYBRID, "model.backbone=gau"], "sliding_window is 12, but backbone is gau"),
        ([HYBRID[1], "model.sliding_window=0"], "sliding_window is 0; expected at least 1 token"),
        ([HYBRID[0], "model.full_attention_layers=0"], "expected at least 1, which schemes apply"),
        ([HYBRID[0], "model.full_attention_layers=3"], "and less than layers = 3"),
        ([HYBRID[1], "model.sliding_window=33"], "model.sliding_window is 33, but length is 32"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(*changes)


def test_the_config_makes_every_model_of_the_job_a_hybrid() -> None:
    for variant in VARIANTS:
        shape = model_shape(config_of(*HYBRID), variant)
        assert isinstance(shape, DecoderConfig)
        assert shape.hybrid == HybridConfig(WINDOW, 1)
        plain = model_shape(config_of(), variant)
        assert isinstance(plain, DecoderConfig)
        assert plain.hybrid is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_learns_and_costs_less_than_full_attention(variant: str) -> None:
    nowhere = Location.of("/nonexistent")
    tasks = [
        task_of(config_of(*changes), variant, train=nowhere, validation=nowhere, seed=0)  # type: ignore[arg-type]
        for changes in (HYBRID, [])
    ]
    task = tasks[0]
    tokens = torch.tensor(list(TEXT.encode()))[: 3 * (L + 1)].view(3, -1)
    batch = {"input_ids": tokens[:, :-1], "targets": tokens[:, 1:]}
    model = task.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = task.loss(model, batch)["lm"].total / tokens[:, 1:].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1.5
    assert tasks[0].flops(batch) < tasks[1].flops(batch)


def make_model() -> DecoderLM:
    model = build(model_shape(config_of(*HYBRID), "plain"), torch.Generator().manual_seed(0))
    assert isinstance(model, DecoderLM)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            # Attention of the initial weights is nearly uniform and would hide positions.
            parameter.data.mul_(4.0)
    return model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("windowed") / "bundle"
    model = make_model()
    shape = model.config
    recorded = {
        "name": "windowed",
        "train_length": L,
        "rotary_base": shape.rotary_base,
        "layout": "half",
        "head_width": shape.head_width,
        "log_n": "none",
        "training_scheme": asdict(PositionScheme("rope")),
    }
    save_bundle(
        Location.of(folder),
        weights=model.state_dict(),
        parts={"shape.json": shape_to_json(shape), "positions.json": recorded},
        card=Card("Tiny", "Nothing.", [Input("n", "generated", "d", "l")], {}, "All", "So", "No"),
        kind="rerope",
        metadata={},
    )
    return folder


@pytest.fixture(scope="module")
def opened(bundle: Path) -> RotaryModel:
    return open_model(load_bundle(bundle))


def test_a_bundle_says_which_layers_are_windowed(opened: RotaryModel) -> None:
    assert isinstance(opened.shape, DecoderConfig)
    assert opened.shape.hybrid == HybridConfig(WINDOW, 1)
    ids = torch.tensor([list(TEXT.encode())])
    with torch.no_grad():
        assert torch.equal(opened.model(ids), make_model()(ids))


def test_the_evaluation_reads_under_every_scheme_what_the_model_says(opened: RotaryModel) -> None:
    model = opened.model
    assert isinstance(model, DecoderLM)
    window = torch.randint(256, (2, 8 * L + 1), generator=torch.Generator().manual_seed(0))
    trials = tuple(
        Trial(PositionScheme("rerope", log_n="post", window=w), 8 * L) for w in (4, 10, L)
    )
    with torch.no_grad():
        found = Scoring(opened.shape, L, trials).output(model, {"input_ids": window})
        assert found.shape == (2, 3, 2)
        for place, trial in enumerate(trials):
            plan = plan_for(opened.shape, trial.scheme, train_length=L, length=8 * L)
            logits = model(window[:, :-1], position_plan=plan)
            assert isinstance(logits, torch.Tensor)
            expected = torch.nn.functional.cross_entropy(
                logits[:, -L:].mT, window[:, -L:], reduction="none"
            )
            torch.testing.assert_close(found[:, place, 0], expected.mean(1))
        # The window of the scheme is none of the windowed layers' business, but it matters.
        assert (found[:, 0, 0] != found[:, 1, 0]).all()
        rope, whole = (
            scores_at_the_end(model, window, scheme, L, length=8 * L, scored=L)[0]
            for scheme in (PositionScheme("rope"), PositionScheme("rerope", window=8 * L))
        )
    torch.testing.assert_close(rope, whole, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[Serving]:
    generation = GenerationConfig(context=512, cache_tokens=2048, prefill_chunk=24)
    with serving_lm([(bundle, 100.0)], endpoint=RotaryEndpoint(generation)) as serving:
        yield serving


@pytest.mark.parametrize(
    "scheme", [REROPE, PositionScheme("rope"), PositionScheme("dca")], ids=lambda one: one.name
)
def test_a_greedy_completion_is_that_of_the_model(
    served: Serving, opened: RotaryModel, scheme: PositionScheme
) -> None:
    asked = {"name": scheme.name, "log_n": scheme.log_n}
    if scheme.window is not None:
        asked["window"] = scheme.window  # type: ignore[assignment]
    body = {"text": TEXT, "scheme": asked, "max_new_tokens": 12, "temperature": 0}
    tokens, plan = list(TEXT.encode()), plan_for(opened.shape, scheme, train_length=L, length=512)
    # The second completion takes over the beginning that the first one left in the cache.
    for _ in range(2):
        answer = requests.post(f"{served.url}/rerope/v1/generate", json=body, timeout=60).json()
        written = list(tokens)
        with torch.inference_mode():
            for expected in answer["tokens"]:
                logits = opened.model(torch.tensor([written]), position_plan=plan)
                assert isinstance(logits, torch.Tensor)
                assert logits[0, -1].argmax() == expected
                written.append(expected)


def test_the_endpoint_says_which_layers_are_windowed(served: Serving) -> None:
    models = requests.get(f"{served.url}/rerope/v1/models", timeout=60).json()["models"]
    assert models[0]["hybrid"] == {"sliding_window": WINDOW, "full_attention_layers": 1}
