"""The whole job, small: from simulated cases to a report, a bundle and its export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from heliostat.config.jobs import find_job
from heliostat.config.load import load_config
from heliostat.errors import BundleError, ConfigError, UserError
from heliostat.runs.bundle import load_bundle, verify_bundle
from heliostat.runs.export import export_bundle
from heliostat.runs.run import Run
from heliostat.runs.summary import RunSummary
from heliostat.storage import Location
from heliostat.train.weights import load_weights
from jobs.pretrained.hf_folder import read_decoder_config
from jobs.support_templates.bundle import open_classifier
from jobs.support_templates.claim import claim
from jobs.support_templates.config import Config
from jobs.support_templates.job import run as run_job
from models.decoder import DecoderLM

SMALL = [
    "data.simulator.unlabelled_cases=300",
    "data.simulator.labelled_cases=120",
    "data.simulator.validation_cases=20",
    "data.simulator.test_cases=40",
    "general.max_characters=500000",
    "general.training.fit.steps=6",
    "model.vocab_size=1024",
    "dapt.fit.steps=12",
    "dft.label_budget=300",
    "dft.fit.epochs=1",
    "compare=false",
    "tracker.enabled=false",
    "resources.workers=2",
]


class Finished:
    """A finished run and what it handed back."""

    def __init__(self, folder: Location, summary: RunSummary) -> None:
        self.folder, self.summary = folder, summary


def execute(out: Path, name: str = "small", more: Sequence[str] = ()) -> Finished:
    """Run the small job under a name; a second call goes on with the same run."""
    loaded = load_config(find_job("support_templates"), "quick", [*SMALL, *more])
    with Run.open_or_create(
        Location.of(out),
        "support_templates",
        name=name,
        resolved_yaml=loaded.resolved_yaml,
        digest=loaded.digest,
        seed=0,
        tracker=loaded.config.tracker,
    ) as run:
        return Finished(run.folder, run_job(loaded.config, run))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job")


@pytest.fixture(scope="module")
def finished(ray_cluster: None, out: Path) -> Finished:
    return execute(out)


def test_the_summary_compares_with_every_classical_baseline(finished: Finished) -> None:
    arms = [row[0] for row in finished.summary.rows]
    assert arms == [
        "majority ranking",
        "TF-IDF, last message",
        "TF-IDF, full context",
        "decoder, adapted to the domain, fine-tuned",
    ]


def test_accuracies_grow_with_k_and_are_percentages(finished: Finished) -> None:
    for row in finished.summary.rows:
        top1, top3, top5 = row[1:4]
        assert 0 <= top1 <= top3 <= top5 <= 100


def test_the_result_says_what_was_measured_and_with_what(finished: Finished) -> None:
    result = json.loads((finished.folder / "result.json").read_text())
    assert result["status"] == "finished"
    metrics = result["metrics"]
    assert {"top1", "top3", "top5", "loss", "dapt_loss"} <= set(metrics)
    # Without embeddings a block has 12 d^2 weights and 13 d biases and norms, the last norm 2 d.
    config = load_config(find_job("support_templates"), "quick", SMALL).config
    assert isinstance(config, Config)
    d, blocks = config.model.width, config.model.layers
    weights = blocks * (12 * d * d + 13 * d) + 2 * d
    assert metrics["dapt_tokens"] > 0
    assert metrics["dapt_flops"] == 6.0 * weights * metrics["dapt_tokens"]
    assert metrics["dapt_flops_full"] > metrics["dapt_flops"]
    assert {"torch", "ray", "deepspeed", "transformers"} <= set(result["versions"])


def test_the_report_is_one_page_that_names_generated_inputs(finished: Finished) -> None:
    page = (finished.folder / "report" / "index.html").read_text()
    assert "generated" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("data:image/png;base64,") >= 5


def test_the_bundle_holds_all_that_serving_needs(finished: Finished) -> None:
    bundle = load_bundle(finished.folder / "bundle")
    assert {"run", "config", "data"} <= bundle.metadata.keys()
    classifier = open_classifier(bundle)
    assert classifier.redactor_version
    assert len(classifier.label_map) == classifier.model.head.weight.shape[0]
    assert set(classifier.label_map.labels) <= set(classifier.templates)
    tokens = torch.tensor(classifier.codec.encode(["where is my card"]))
    logits = classifier.model(tokens)
    assert logits.shape == (1, len(classifier.label_map))


def test_a_changed_bundle_is_refused(finished: Finished, tmp_path: Path) -> None:
    (finished.folder / "bundle").download(tmp_path / "bundle")
    verify_bundle(tmp_path / "bundle")
    label_map = tmp_path / "bundle" / "label_map.json"
    label_map.write_text(label_map.read_text().replace("a", "b", 1))
    with pytest.raises(BundleError, match=r"label_map\.json"):
        verify_bundle(tmp_path / "bundle")


def test_the_export_gives_equal_logits_in_transformers(finished: Finished, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    bundle = load_bundle(finished.folder / "bundle")
    exported = export_bundle(bundle, Location.of(tmp_path / "hf"))
    assert exported.max_abs_difference <= 1e-4
    classifier = open_classifier(bundle)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    texts = ["hi there", "my card payment was declined, what should i do?"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    lengths = batch["attention_mask"].sum(1).tolist()
    rows = [ids[:n].tolist() for ids, n in zip(batch["input_ids"], lengths, strict=True)]
    assert rows == classifier.codec.encode(texts)
    with torch.inference_mode():
        theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        ours = classifier.model(batch["input_ids"], attention_mask=batch["attention_mask"].bool())
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_no_prepared_text_or_token_holds_a_raw_value(finished: Finished) -> None:
    log = "\n".join((finished.folder / name).read_text() for name in ("config.yaml", "result.json"))
    assert "@example." not in log


def test_the_adapted_decoder_is_fine_tuned_again_without_another_adaptation(
    finished: Finished, out: Path
) -> None:
    adapted = (finished.folder / "adapted").local_path
    again = execute(out, "again", [f"model.source={adapted}", "adapted=true"])
    stages = {file.stem for file in (again.folder / "stages").local_path.glob("*.json")}
    assert {"labels", "dft"} <= stages
    assert not stages & {"general", "dapt"}
    before, after = (
        json.loads((folder / "result.json").read_text())["metrics"]
        for folder in (finished.folder, again.folder)
    )
    for name in ("top1", "top3", "top5", "loss"):
        assert after[name] == before[name]
    assert "dapt_loss" in before
    assert "dapt_loss" not in after


def test_transformers_reads_the_adapted_decoder(finished: Finished) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = (finished.folder / "adapted").local_path
    codec = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([codec.encode("my card was declined, please help")])
    ours = DecoderLM(read_decoder_config(folder), torch.Generator()).eval()
    load_weights(ours, finished.folder / "stages" / "dapt" / "weights" / "last")
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, ours(ids), rtol=0, atol=1e-5)


def test_a_decoder_adapted_with_another_redactor_is_refused(
    finished: Finished, out: Path, tmp_path: Path
) -> None:
    other = tmp_path / "adapted"
    shutil.copytree((finished.folder / "adapted").local_path, other)
    about = json.loads((other / "about.json").read_text())
    (other / "about.json").write_text(json.dumps({**about, "redactor_version": "0"}))
    words = [f"model.source={other}", "adapted=true"]
    with pytest.raises(UserError, match="adapted to transcripts of redactor 0"):
        execute(out, "other", words)
    (other / "about.json").unlink()
    with pytest.raises(UserError, match="not the folder `adapted`"):
        execute(out, "nameless", words)


def test_an_adapted_decoder_must_be_named() -> None:
    with pytest.raises(ConfigError, match="an earlier run, model"):
        load_config(find_job("support_templates"), "quick", ["adapted=true"])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["model.source=/somewhere"], "two sizes from random"),
        (["data.cases=a.parquet", "data.templates=b.parquet"], "what the simulator planted"),
    ],
)
def test_a_claim_that_cannot_be_measured_is_refused(words: list[str], reason: str) -> None:
    config = load_config(find_job("support_templates"), None, words).config
    with pytest.raises(ConfigError, match=reason):
        claim(config, cast(Run, None))


def test_starting_a_finished_run_again_trains_nothing(finished: Finished, out: Path) -> None:
    before = json.loads((finished.folder / "result.json").read_text())["stages"]
    again = execute(out)
    after = json.loads((finished.folder / "result.json").read_text())["stages"]
    assert again.summary.rows == finished.summary.rows
    assert {k: v["attempts"] for k, v in after.items()} == {
        k: v["attempts"] for k, v in before.items()
    }
