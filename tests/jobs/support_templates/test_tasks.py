"""Next-token training and template classification: batches, counts, losses, operations."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from heliostat.data.stream import Sample
from heliostat.errors import DataError
from heliostat.storage import Location
from heliostat.train.task import Task
from heliostat.train.weights import write_weights
from jobs.support_templates.tasks import MULTIPLE, LanguageModelling, TemplateClassification
from models.decoder_config import gpt_neox_config
from tests.support.token_tables import (
    END_OF_TEXT,
    PAD,
    VOCABULARY,
    write_contexts,
    write_documents,
)

DECODER = gpt_neox_config(vocab_size=VOCABULARY, width=32, layers=2, heads=4, max_positions=64)
CLASSES = 7
LABELS = [3, -1, 0, 6, -1, 2]


@pytest.fixture
def language(tmp_path: Path) -> LanguageModelling:
    """Rows of 16 tokens; 30 documents, so the last row of an epoch is padded."""
    folder = Location.of(tmp_path)
    redacted = {"redactor_version": "7"}
    lengths = [3 + n % 11 for n in range(30)]
    assert (sum(lengths) + 30) % 16
    return LanguageModelling(
        name="dapt",
        decoder=DECODER,
        documents=write_documents(folder / "train", lengths, 0, redacted),
        validation=write_documents(folder / "validation", [9] * 12, 1, redacted),
        seq_len=16,
        end_of_text=END_OF_TEXT,
        pad=PAD,
        seed=5,
        validation_rows=4,
        redactor_version="7",
    )


@pytest.fixture
def templates(tmp_path: Path) -> TemplateClassification:
    """Six contexts, two of them with a template outside the label map."""
    contexts = write_contexts(Location.of(tmp_path) / "labelled", [4, 9, 17, 1, 30, 12], LABELS, 2)
    return TemplateClassification(
        name="dft",
        decoder=DECODER,
        pretrained=None,
        classes=CLASSES,
        samples=contexts,
        validation=contexts,
        pad=PAD,
        seed=5,
    )


def every(stream: Any) -> list[Sample]:
    return list(stream.samples(range(stream.epoch_size)))


def test_both_are_tasks(language: LanguageModelling, templates: TemplateClassification) -> None:
    assert isinstance(language, Task)
    assert isinstance(templates, Task)


def test_language_counts_every_target_once(language: LanguageModelling) -> None:
    rows = every(language.train_data())
    batch = language.collate(rows)
    assert batch["input_ids"].shape == (len(rows), 16)
    targets = sum(1 for row in batch["labels"].tolist() for label in row[1:] if label != -100)
    assert language.counts(batch) == {"tokens": targets}
    # Every row gives a target less than its real tokens; the last row has padding.
    real = sum(row["n_real"] for row in rows)  # type: ignore[misc]
    assert real % 16
    assert targets == real - len(rows)


def test_every_seed_is_evaluated_on_the_same_rows(language: LanguageModelling) -> None:
    def rows(seed: int) -> list[list[int]]:
        found = every(replace(language, seed=seed).eval_data())
        return [np.asarray(row["input_ids"]).tolist() for row in found]

    assert rows(1) == rows(2)


@pytest.mark.parametrize("isolate", [False, True])
def test_language_loss_is_that_of_a_slow_loop(language: LanguageModelling, isolate: bool) -> None:
    task = replace(language, isolate_documents=isolate)
    model = task.model().eval()
    rows = every(task.train_data())
    batch = task.collate(rows)
    total = task.loss(model, batch)["lm"]
    slow = 0.0
    for row in rows:
        ids, documents = torch.as_tensor(row["input_ids"]), np.asarray(row["document_ids"])
        for t in range(1, int(row["n_real"])):  # type: ignore[call-overload]
            first = int(np.argmax(documents == documents[t - 1])) if isolate else 0
            logits = model(ids[None, first:t])[0, -1]
            slow -= torch.log_softmax(logits, 0)[ids[t]].item()
    assert total.per == "tokens"
    assert total.total.item() == pytest.approx(slow, rel=1e-5)
    tally = task.evaluate(model, batch)["loss"]
    assert float(tally.total.detach()) / tally.count == pytest.approx(  # type: ignore[union-attr]
        slow / task.counts(batch)["tokens"], rel=1e-5
    )


def test_a_padded_row_adds_its_real_targets_only(language: LanguageModelling) -> None:
    model = language.model().eval()
    *full, last = every(language.train_data())
    whole = language.loss(model, language.collate([*full, last]))["lm"].total
    parts = [language.loss(model, language.collate(rows))["lm"].total for rows in (full, [last])]
    torch.testing.assert_close(whole, sum(parts), rtol=1e-5, atol=0)  # type: ignore[arg-type]
    counts = [language.counts(language.collate(rows))["tokens"] for rows in (full, [last])]
    assert counts[1] == last["n_real"] - 1  # type: ignore[operator]


def test_isolated_documents_do_not_see_each_other(language: LanguageModelling) -> None:
    row = next(r for r in every(language.train_data()) if np.max(r["document_ids"]) >= 1)  # type: ignore[call-overload]
    second = int(np.argmax(np.asarray(row["document_ids"]) == 1))
    changed = dict(row)
    ids = np.array(row["input_ids"])
    ids[0] = ids[0] % (VOCABULARY - 3) + 2
    changed["input_ids"] = ids
    labels = np.array(row["labels"])
    labels[: second + 1] = -100
    for isolate in (False, True):
        task = replace(language, isolate_documents=isolate)
        model = task.model().eval()
        before, after = (
            task.loss(model, task.collate([{**one, "labels": labels}]))["lm"].total.item()
            for one in (row, changed)
        )
        assert (before == pytest.approx(after, rel=1e-6)) is isolate


def test_language_evaluates_the_first_held_out_rows(language: LanguageModelling) -> None:
    assert language.eval_data().epoch_size == 4
    assert replace(language, validation_rows=1000).eval_data().epoch_size == math.ceil(120 / 16)


@pytest.mark.parametrize(("version", "why"), [("8", "expected '8'"), ("7", None)])
def test_documents_of_another_redactor_are_refused(
    language: LanguageModelling, version: str, why: str | None
) -> None:
    task = replace(language, redactor_version=version)
    if why is None:
        assert task.train_data().epoch_size
    else:
        with pytest.raises(DataError, match=why):
            _ = task.train_data().epoch_size


def test_language_flops_agree_with_the_counter(language: LanguageModelling) -> None:
    batch = language.collate(every(language.train_data()))
    model = language.model()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        language.loss(model, batch)["lm"].total.backward()
    assert language.flops(batch) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_contexts_are_padded_on_the_right_to_a_multiple(templates: TemplateClassification) -> None:
    samples = every(templates.eval_data())
    batch = templates.collate(samples)
    longest = max(len(sample["tokens"]) for sample in samples)  # type: ignore[arg-type]
    width = batch["input_ids"].shape[1]
    assert width % MULTIPLE == 0
    assert longest <= width < longest + MULTIPLE
    for row, sample in enumerate(samples):
        tokens = np.asarray(sample["tokens"]).tolist()
        assert batch["input_ids"][row, : len(tokens)].tolist() == tokens
        assert set(batch["input_ids"][row, len(tokens) :].tolist()) <= {PAD}
        assert batch["attention_mask"][row].sum() == len(tokens)
        assert batch["attention_mask"][row, : len(tokens)].all()
    assert batch["labels"].tolist() == LABELS


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_logits_do_not_depend_on_the_rest_of_the_batch(
    templates: TemplateClassification, pooling: str
) -> None:
    task = replace(templates, pooling=pooling)
    model, samples = task.model().eval(), every(task.eval_data())
    together = task.logits(model, task.collate(samples))
    alone = [task.logits(model, task.collate([sample])) for sample in samples]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_classification_loss_is_that_of_a_slow_loop(templates: TemplateClassification) -> None:
    model, samples = templates.model().eval(), every(templates.eval_data())
    batch = templates.collate(samples)
    slow, hits = 0.0, {1: 0, 3: 0, 5: 0}
    for sample, label in zip(samples, LABELS, strict=True):
        logits = model(torch.as_tensor(np.asarray(sample["tokens"], np.int64))[None])[0]
        if label < 0:
            continue
        slow -= torch.log_softmax(logits, 0)[label].item()
        for k in hits:
            hits[k] += label in logits.topk(k).indices.tolist()
    term = templates.loss(model, batch)["cls"]
    assert term.per == "samples"
    assert templates.counts(batch) == {"samples": 4}
    assert term.total.item() == pytest.approx(slow, rel=1e-5)
    tallies = templates.evaluate(model, batch)
    assert float(tallies["loss"].total) / tallies["loss"].count == pytest.approx(slow / 4, rel=1e-5)
    for k, found in hits.items():
        assert (float(tallies[f"top{k}"].total), tallies[f"top{k}"].count) == (found, len(LABELS))


def test_smoothing_divides_a_share_of_the_target_over_all_templates_in_training_alone(
    templates: TemplateClassification,
) -> None:
    smoothed = replace(templates, label_smoothing=0.05)
    model = templates.model().eval()
    batch = templates.collate(every(templates.eval_data()))
    known = batch["labels"] >= 0
    logs = torch.log_softmax(templates.logits(model, batch).double(), dim=1)[known]
    right = logs.gather(1, batch["labels"][known, None])[:, 0]
    expected = -(0.95 * right + 0.05 * logs.mean(dim=1)).sum().item()
    assert smoothed.loss(model, batch)["cls"].total.item() == pytest.approx(expected, rel=1e-5)
    plain = templates.evaluate(model, batch)["loss"].total
    assert torch.equal(torch.as_tensor(smoothed.evaluate(model, batch)["loss"].total), plain)


def test_a_label_outside_the_map_gives_no_gradient_and_is_a_miss(
    templates: TemplateClassification,
) -> None:
    model = templates.model()
    samples = every(templates.eval_data())
    outside = [sample for sample in samples if sample["label"] == -1]
    batch = templates.collate(outside)
    loss = templates.loss(model, batch)["cls"].total
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    tallies = templates.evaluate(model, batch)
    assert {name: (float(t.total), t.count) for name, t in tallies.items()} == {
        "loss": (0, 0),
        "top1": (0, len(outside)),
        "top3": (0, len(outside)),
        "top5": (0, len(outside)),
    }


def test_few_classes_never_make_a_miss_a_hit(templates: TemplateClassification) -> None:
    task = replace(templates, classes=2)
    samples = [s for s in every(task.eval_data()) if s["label"] == -1]
    tallies = task.evaluate(task.model().eval(), task.collate(samples))
    assert float(tallies["top5"].total) == 0


def test_classification_flops_agree_with_the_counter(templates: TemplateClassification) -> None:
    batch = templates.collate(every(templates.eval_data()))
    model = templates.model()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        templates.loss(model, batch)["cls"].total.backward()
    assert templates.flops(batch) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_classifier_starts_from_the_language_model_and_a_fresh_head(
    language: LanguageModelling, templates: TemplateClassification, tmp_path: Path
) -> None:
    trained = replace(language, seed=99).model().state_dict()
    folder = Location.of(tmp_path) / "weights"
    write_weights(folder, trained, {})
    started = replace(templates, pretrained=folder).model().state_dict()
    for name, value in started.items():
        if name != "head.weight":
            assert torch.equal(value, trained[name]), name
    fresh = templates.model().state_dict()
    assert torch.equal(started["head.weight"], fresh["head.weight"])
    assert not torch.equal(started["decoder.embedding.weight"], fresh["decoder.embedding.weight"])
    assert "output_embedding.weight" not in started


def test_initial_weights_come_from_the_seed_alone(
    language: LanguageModelling, templates: TemplateClassification
) -> None:
    for task in (language, templates):
        before = torch.get_rng_state()
        first, again, other = (
            one.model().state_dict() for one in (task, task, replace(task, seed=6))
        )
        assert torch.equal(before, torch.get_rng_state())
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)


def test_every_epoch_shows_every_context_once_in_an_order_of_its_own(
    templates: TemplateClassification,
) -> None:
    stream = templates.train_data()
    size = stream.epoch_size
    epochs = [
        [sample["id"] for sample in stream.samples(range(e * size, (e + 1) * size))]
        for e in range(3)
    ]
    assert all(sorted(ids) == sorted(epochs[0]) for ids in epochs)  # type: ignore[type-var]
    assert len({tuple(ids) for ids in epochs}) > 1


def test_biases_and_norms_do_not_decay(
    language: LanguageModelling, templates: TemplateClassification
) -> None:
    for task in (language, templates):
        model = task.model()
        decayed, kept = task.parameter_groups(model)
        still = {id(p) for p in kept["params"]}  # type: ignore[attr-defined]
        assert kept["weight_decay"] == 0
        for name, parameter in model.named_parameters():
            assert (id(parameter) in still) == ("norm" in name or name.endswith("bias")), name
        everything = [*decayed["params"], *kept["params"]]  # type: ignore[misc]
        assert len(everything) == len(list(model.parameters()))
