"""Export: only a job's exporter is called, and only equal logits pass."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from heliostat.errors import BundleError, Fault, UserError
from heliostat.runs.bundle import Bundle, load_bundle, save_bundle
from heliostat.runs.card import Card
from heliostat.runs.export import LogitProof, export_bundle
from heliostat.runs.inputs import Input
from heliostat.storage import Location

CARD = Card(
    title="Tiny GPT-2",
    what="Nothing of use.",
    inputs=[Input("noise", "generated", "random weights", "Apache-2.0")],
    metrics={},
    limits="All.",
    how_made="At random.",
    licence="Apache-2.0",
)


def tiny_gpt2() -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=32, n_positions=16)
    return GPT2LMHeadModel(config).eval()


def gpt2_exporter(bundle: Bundle, folder: Path) -> LogitProof:
    """A tied GPT-2 through its state dict, as a job would export it."""
    from transformers import AutoModelForCausalLM

    model = tiny_gpt2()
    model.load_state_dict(bundle.weights())
    model.save_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        return LogitProof(model(tokens).logits, loaded(tokens).logits, tolerance=1e-6)


def wrong_exporter(bundle: Bundle, folder: Path) -> LogitProof:
    proof = gpt2_exporter(bundle, folder)
    return LogitProof(proof.reference, proof.exported + 1e-3, tolerance=1e-6)


def nan_exporter(bundle: Bundle, folder: Path) -> LogitProof:
    proof = gpt2_exporter(bundle, folder)
    return LogitProof(proof.reference, proof.exported * float("nan"), tolerance=1e-6)


def endless_exporter(bundle: Bundle, folder: Path) -> LogitProof:
    proof = gpt2_exporter(bundle, folder)
    reference = proof.reference.clone()
    reference[0, 0, 0] = float("inf")
    return LogitProof(reference, proof.exported, tolerance=1e-6)


def lazy_exporter(bundle: Bundle, folder: Path) -> LogitProof:
    return LogitProof(torch.zeros(2), torch.zeros(2), tolerance=1e-6)


@pytest.fixture
def job_module() -> Iterator[str]:
    """A module under `jobs` that defines the exporters above."""
    name = "jobs.for_export_tests"
    module = types.ModuleType(name)
    for exporter in (
        gpt2_exporter,
        wrong_exporter,
        nan_exporter,
        endless_exporter,
        lazy_exporter,
    ):
        copy = types.FunctionType(exporter.__code__, globals(), exporter.__name__)
        copy.__module__ = name
        setattr(module, exporter.__name__, copy)
    module.borrowed = save_bundle  # type: ignore[attr-defined]
    sys.modules[name] = module
    yield name
    del sys.modules[name]


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[[object], Bundle]:
    def make(exporter: object) -> Bundle:
        metadata = {} if exporter is None else {"exporter": exporter}
        place = Location.of(tmp_path / "bundle")
        parts = {"tokenizer/tokenizer.json": '{"version": "1.0"}'}
        save_bundle(
            place,
            weights=tiny_gpt2().state_dict(),
            parts=parts,
            card=CARD,
            kind="language-model",
            metadata=metadata,
        )
        return load_bundle(place)

    return make


def test_a_tied_gpt2_exports_with_equal_logits(
    bundle: Callable[[object], Bundle], job_module: str, tmp_path: Path
) -> None:
    result = export_bundle(bundle(f"{job_module}:gpt2_exporter"), Location.of(tmp_path / "hf"))
    assert result.max_abs_difference == 0.0
    assert result.logits == 2 * 6 * 32
    assert result.peak_memory_bytes > 1 << 20
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert "manifest.json" not in names


@pytest.mark.parametrize(
    "exporter", ["wrong_exporter", "nan_exporter", "endless_exporter", "lazy_exporter"]
)
def test_an_export_that_is_not_proven_leaves_nothing(
    bundle: Callable[[object], Bundle], job_module: str, tmp_path: Path, exporter: str
) -> None:
    with pytest.raises(Fault):
        export_bundle(bundle(f"{job_module}:{exporter}"), Location.of(tmp_path / "hf"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


@pytest.mark.parametrize(
    "exporter",
    [
        "os:system",
        "shutil:rmtree",
        "heliostat.runs.bundle:save_bundle",
        "jobs:anything",
        "jobsuite.x:run",
        "jobs.for_export_tests:borrowed",
        "jobs.for_export_tests:__builtins__",
        "jobs.for_export_tests:missing",
        "jobs.nowhere_at_all:run",
        "jobs.for_export_tests",
        ["not", "text"],
        None,
    ],
)
def test_nothing_but_a_function_of_a_job_is_called(
    bundle: Callable[[object], Bundle], job_module: str, tmp_path: Path, exporter: object
) -> None:
    with pytest.raises(BundleError):
        export_bundle(bundle(exporter), Location.of(tmp_path / "hf"))


def test_an_existing_folder_is_not_written_over(
    bundle: Callable[[object], Bundle], job_module: str, tmp_path: Path
) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="new or empty"):
        export_bundle(bundle(f"{job_module}:gpt2_exporter"), Location.of(tmp_path / "hf"))


@pytest.mark.parametrize(("largest", "allowed"), [(0.1, 2e-5), (1.0, 2e-5), (22.0, 4.4e-4)])
def test_what_counts_as_equal_grows_with_the_largest_logit(largest: float, allowed: float) -> None:
    reference = torch.tensor([0.05, -largest])
    proof = LogitProof(reference, reference, tolerance=2e-5)
    assert proof.allowed == pytest.approx(allowed, rel=1e-6)
