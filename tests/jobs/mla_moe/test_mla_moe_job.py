"""The whole job, small: from Python sources to a report, a bundle and its export."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
import requests
import torch
from served_lm import serving_lm

from heliostat.config.jobs import find_job
from heliostat.config.load import load_config
from heliostat.config.resources import TrackerConfig
from heliostat.data.table import TableWriter
from heliostat.errors import ConfigError
from heliostat.runs.bundle import load_bundle
from heliostat.runs.export import export_bundle
from heliostat.runs.run import Run
from heliostat.runs.summary import RunSummary
from heliostat.serve.generation.config import GenerationConfig
from heliostat.serve.generation.hf_codec import HfCodec
from heliostat.storage import Location
from jobs.mla_moe.bundle import open_language_model
from jobs.mla_moe.claim import claim
from jobs.mla_moe.endpoint import MixtureEndpoint
from jobs.mla_moe.job import run as run_job

SMALL = [
    "model.width=32",
    "model.layers=2",
    "model.feed_forward_width=48",
    "model.attention.latent_width=16",
    "model.attention.rotary_width=16",
    "model.attention.head_width=8",
    "model.attention.value_width=8",
    "model.experts.width=16",
    "data.validation_rows=8",
    "data.test_rows=32",
    "fit.steps=6",
    "fit.batch=8",
    "fit.micro_batch=2",
    "tracker.enabled=false",
]


class Finished:
    """A finished run and what it handed back."""

    def __init__(self, folder: Location, summary: RunSummary) -> None:
        self.folder, self.summary = folder, summary


@pytest.fixture(scope="module")
def finished(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return ran(tmp_path_factory.mktemp("job"))


def ran(folder: Path, *changes: str) -> Finished:
    loaded = load_config(find_job("mla_moe"), "toy", [*SMALL, *changes])
    with Run.open_or_create(
        Location.of(folder),
        "mla_moe",
        name="small",
        resolved_yaml=loaded.resolved_yaml,
        digest=loaded.digest,
        seed=0,
        tracker=loaded.config.tracker,
    ) as run:
        return Finished(run.folder, run_job(loaded.config, run))


def test_the_result_says_what_was_measured(finished: Finished) -> None:
    result = json.loads((finished.folder / "result.json").read_text())
    assert result["status"] == "finished"
    metrics = result["metrics"]
    assert 4 < metrics["loss"] < 6
    assert metrics["cache_bytes_per_token"] == 2 * (16 + 16) * 4
    assert 0 < metrics["maxvio_global"] < 16
    assert 1 <= metrics["groups_per_token"] <= 2


def test_every_step_records_the_balance(finished: Finished) -> None:
    lines = (finished.folder / "metrics").list()[0].read_text()
    assert "max_violation/0" in lines
    assert "load/0/15" in lines


def test_the_report_is_one_page_with_the_maps(finished: Finished) -> None:
    page = (finished.folder / "report" / "index.html").read_text()
    for heading in ("Loss by term", "Balance of the experts", "Cache", "Configuration"):
        assert heading in page
    files = {file.name for file in (finished.folder / "report").list()}
    for name in ("expert-load", "loss-terms", "max-violation"):
        assert any(file.endswith(f"{name}.png") for file in files)
    assert page.count("data:image/png;base64,") >= 5


def test_the_bundle_opens_with_the_bias_it_was_trained_to(
    finished: Finished, tmp_path: Path
) -> None:
    bundle = load_bundle(finished.folder / "bundle")
    model = open_language_model(bundle)
    ((_, bias),) = model.named_buffers()
    assert bias.dtype == torch.float32
    # Six steps of 0.01 up or down, or none where the load was the mean.
    steps = (bias / 0.01).round()
    torch.testing.assert_close(bias, steps * 0.01, atol=1e-6, rtol=0)
    assert steps.abs().max() > 0
    exported = export_bundle(bundle, Location.of(tmp_path / "hf"))
    assert exported.max_abs_difference <= 2e-5


@pytest.fixture(scope="module")
def exported(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "hf"
    export_bundle(load_bundle(finished.folder / "bundle"), Location.of(folder))
    return folder


@pytest.mark.parametrize("kind", ["bundle", "Hugging Face layout"])
def test_a_long_context_stage_begins_with_the_weights_that_were_trained(
    finished: Finished, exported: Path, tmp_path: Path, kind: str
) -> None:
    before = finished.folder / "bundle"
    source = before.uri if kind == "bundle" else str(exported)
    stage = ran(
        tmp_path,
        f"model.source={source}",
        "model.yarn.factor=4",
        "model.yarn.original_positions=128",
        "data.length=256",
        "fit.steps=1",
        "fit.schedule.warmup_steps=0",
        "fit.optimizer.lr=1.0e-9",
    )
    bundle = load_bundle(stage.folder / "bundle")
    assert bundle.json("decoder.json")["yarn"]["factor"] == 4
    after, trained = bundle.weights(), load_bundle(before).weights()
    biases = [name for name in trained if name.endswith("bias")]
    assert len(biases) == 1
    for name, value in trained.items():
        # The bias took one more step.
        tolerance = 0.0101 if name in biases else 1e-7
        torch.testing.assert_close(after[name], value, atol=tolerance, rtol=0)


def test_answers_are_learnt_for_two_epochs(finished: Finished, tmp_path: Path) -> None:
    schema = pa.schema([("tokens", pa.list_(pa.uint8())), ("is_answer", pa.list_(pa.bool_()))])
    answer = b" indeed\n"
    for side, count in (("train", 36), ("test", 12)):
        asked = [f"def question_{number:03}():".encode() for number in range(count)]
        rows = {
            "tokens": [list(one + answer) for one in asked],
            "is_answer": [[False] * len(one) + [True] * len(answer) for one in asked],
        }
        with TableWriter(Location.of(tmp_path / side), schema, {}) as writer:
            writer.write(pa.RecordBatch.from_pydict(rows, schema=schema))
    # A row is one conversation of 27 tokens with its end: 36 rows, in batches of 8 for two epochs.
    stage = ran(
        tmp_path / "stage",
        f"model.source={(finished.folder / 'bundle').uri}",
        f"data.train={tmp_path / 'train'}",
        f"data.test={tmp_path / 'test'}",
        "data.targets=is_answer",
        "data.length=28",
        "data.validation_rows=4",
        "data.test_rows=null",
        "fit.steps=null",
        "fit.epochs=2",
        "fit.schedule.warmup_steps=0",
        "fit.optimizer.lr=1.0e-2",
    )
    said = (stage.folder / "metrics").list()[0].read_text().splitlines()
    rows = [json.loads(line)["metrics"] for line in said]
    losses = [row["loss"] for row in rows if "grad_norm" in row]
    assert len(losses) == 36 * 2 // 8
    assert losses[-1] < 0.7 * losses[0]


PIECES = ("data.tokenizer=bpe", "model.vocab_size=600")


@pytest.fixture(scope="module")
def in_pieces(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return ran(tmp_path_factory.mktemp("pieces"), *PIECES)


def test_a_model_of_pieces_takes_its_tokenizer_along(in_pieces: Finished, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    text = "def main(value):\n    return value\n"
    bundle = load_bundle(in_pieces.folder / "bundle")
    ids = HfCodec(bundle.folder).encode(text)
    assert len(ids) < len(text) / 1.5
    assert 4 < json.loads((in_pieces.folder / "result.json").read_text())["metrics"]["loss"] < 7
    export_bundle(bundle, Location.of(tmp_path / "hf"))
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").encode(text) == ids
    endpoint = MixtureEndpoint(GenerationConfig(cache_tokens=1000, prefill_chunk=32))
    place = Path((in_pieces.folder / "bundle").uri)
    with serving_lm([(place, 100.0)], endpoint=endpoint) as served:
        answers = [
            requests.post(f"{served.url}/mla_moe/v1/{path}", json=body, timeout=60).json()
            for path, body in (
                ("score", {"text": text}),
                ("completions", {"prompt": text, "max_tokens": 8}),
            )
        ]
    assert answers[0]["n_tokens"] == len(ids)
    choice = answers[1]["choices"][0]
    pieces = b"".join(map(HfCodec(bundle.folder).token_bytes, choice["tokens"]))
    assert choice["text"] == pieces.decode(errors="replace")


def test_a_training_goes_on_in_the_tokens_that_it_began_with(
    finished: Finished, in_pieces: Finished, tmp_path: Path
) -> None:
    place = (in_pieces.folder / "bundle").uri
    begin = (f"model.source={place}", "model.vocab_size=600", "fit.steps=1")
    with pytest.raises(ConfigError, match=f"data.tokenizer is null: data.tokenizer={place}"):
        ran(tmp_path / "bytes", *begin)
    gone_on = ran(tmp_path / "on", *begin, f"data.tokenizer={place}", "fit.schedule.warmup_steps=0")
    assert load_bundle(gone_on.folder / "bundle").json("tokens.json")["kind"] == "pieces"
    read_bytes = (finished.folder / "bundle").uri
    with pytest.raises(ConfigError, match=r"which reads bytes, but data\.tokenizer is"):
        ran(tmp_path / "pieces", f"model.source={read_bytes}", f"data.tokenizer={place}",
            "model.vocab_size=600")  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.tokenizer=bpe"], r"model\.vocab_size is 256: expected more than 258 and at most"),
        (
            ["data.tokenizer=bpe", "data.train=/a", "data.test=/b"],
            "name the folder of the tokenizer that made the table",
        ),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(find_job("mla_moe"), "toy", changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.experts.width=24", "whose experts.width is 16, but the section model gives 24"),
        ("model.attention.rotary_width=8", "whose latent.rotary_width is 16, .* gives 8"),
    ],
)
def test_a_source_of_another_shape_is_refused(
    finished: Finished, tmp_path: Path, change: str, message: str
) -> None:
    source = (finished.folder / "bundle").uri
    with pytest.raises(ConfigError, match=message):
        ran(tmp_path, f"model.source={source}", change)


def test_a_source_that_is_nothing_is_named(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.source is '/nowhere': there is no such folder"):
        ran(tmp_path, "model.source=/nowhere")


def test_a_claim_begins_with_random_weights(tmp_path: Path) -> None:
    loaded = load_config(find_job("mla_moe"), "toy", ["model.source=/nowhere"])
    with (
        Run.open_or_create(
            Location.of(tmp_path),
            "mla_moe",
            name="claim",
            resolved_yaml=loaded.resolved_yaml,
            digest=loaded.digest,
            seed=0,
            tracker=TrackerConfig(enabled=False),
        ) as run,
        pytest.raises(ConfigError, match="every arm of the claim begins with random weights"),
    ):
        claim(loaded.config, run)
