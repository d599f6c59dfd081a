"""The encoder baseline: what is masked, what is counted, and that it shares the decoder's data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from heliostat.config.resources import ResourcesConfig, TrackerConfig
from heliostat.data.reader import StreamReader, batch_plan
from heliostat.data.stream import Sample
from heliostat.errors import CheckpointError, ConfigError
from heliostat.runs.run import Run
from heliostat.storage import Location
from heliostat.train.config import FitConfig, OptimizerConfig
from heliostat.train.history import read_history
from heliostat.train.task import Batch, Task
from heliostat.train.weights import write_weights
from jobs.corpora.tokenizer import load_codec, train_tokenizer
from jobs.support_templates.config import (
    ClassifierStage,
    Config,
    DataConfig,
    EncoderBaseline,
    GeneralStage,
    LanguageModelStage,
    ModelConfig,
)
from jobs.support_templates.contexts import ContextConfig
from jobs.support_templates.data.sim_config import SimConfig
from jobs.support_templates.encoder_baseline import (
    encoder_arms,
    encoder_config,
    fine_tuning_fit,
    masking_fit,
)
from jobs.support_templates.encoder_tasks import EncoderClassification, MaskedLanguageModelling
from jobs.support_templates.pipeline import Base, general_documents, label, open_conversations
from jobs.support_templates.tasks import LanguageModelling, TemplateClassification
from models.decoder_config import gpt_neox_config
from models.encoder import EncoderConfig
from tests.support.token_tables import (
    END_OF_TEXT,
    PAD,
    VOCABULARY,
    write_contexts,
    write_documents,
)

DECODER = gpt_neox_config(vocab_size=VOCABULARY, width=32, layers=2, heads=4, max_positions=64)
ENCODER = EncoderConfig(
    vocab_size=VOCABULARY + 1, width=32, layers=2, heads=4, max_positions=32, dropout=0.0
)
MASK = VOCABULARY
LABELS = [3, -1, 0, 6, -1, 2]


@pytest.fixture
def masked(tmp_path: Path) -> MaskedLanguageModelling:
    """Rows of 32 tokens from 200 documents; the last row of an epoch is padded."""
    folder = Location.of(tmp_path)
    rows = LanguageModelling(
        name="dapt",
        decoder=DECODER,
        documents=write_documents(folder / "train", [5 + n % 40 for n in range(200)], 0, {}),
        validation=write_documents(folder / "validation", [20] * 20, 1, {}),
        seq_len=32,
        end_of_text=END_OF_TEXT,
        pad=PAD,
        seed=5,
        validation_rows=6,
    )
    return MaskedLanguageModelling("encoder-dapt", ENCODER, rows, masking_rate=0.15)


@pytest.fixture
def classifier(tmp_path: Path, masked: MaskedLanguageModelling) -> EncoderClassification:
    """Six contexts, two of them with a template outside the label map."""
    folder = Location.of(tmp_path)
    contexts = write_contexts(folder / "labelled", [4, 9, 17, 1, 30, 12], LABELS, 2)
    weights = folder / "pretrained"
    write_weights(weights, own(replace_seed(masked, 99).model().state_dict()), {})
    decoder_task = TemplateClassification(
        name="dft",
        decoder=DECODER,
        pretrained=None,
        classes=7,
        samples=contexts,
        validation=contexts,
        pad=PAD,
        seed=5,
    )
    return EncoderClassification("encoder-dft", ENCODER, weights, decoder_task)


def replace_seed(task: MaskedLanguageModelling, seed: int) -> MaskedLanguageModelling:
    return replace(task, decoder_task=replace(task.decoder_task, seed=seed))


def own(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tied weights under each of their names, as `fit` exports them."""
    return {name: value.clone() for name, value in state.items()}


def epoch(task: MaskedLanguageModelling, number: int) -> list[Sample]:
    stream = task.train_data()
    size = stream.epoch_size
    return stream.samples(range(number * size, (number + 1) * size))


def same(first: Batch, second: Batch) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_both_are_tasks(masked: MaskedLanguageModelling, classifier: EncoderClassification) -> None:
    assert isinstance(masked, Task)
    assert isinstance(classifier, Task)


def test_masked_rows_are_the_decoders_rows_with_15_percent_to_predict(
    masked: MaskedLanguageModelling,
) -> None:
    chosen = maskable = became_mask = 0
    for number in range(12):
        stream = masked.decoder_task.train_data()
        start = number * stream.epoch_size
        plain = stream.samples(range(start, start + stream.epoch_size))
        for row, original in zip(epoch(masked, number), plain, strict=True):
            ids, labels = np.asarray(row["input_ids"]), np.asarray(row["labels"])
            before = np.asarray(original["input_ids"])
            real = np.arange(32) < original["n_real"]
            assert np.array_equal(np.asarray(row["attention_mask"]), real)
            target = labels != -100
            assert np.array_equal(labels[target], before[target])
            assert np.array_equal(ids[~target], before[~target])
            may = real & (before != END_OF_TEXT)
            assert not (target & ~may).any()
            chosen, maskable = chosen + target.sum(), maskable + may.sum()
            became_mask += (ids[target] == MASK).sum()
            assert ids.max() <= MASK
    # Four standard deviations of a binomial share.
    assert chosen / maskable == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / maskable) ** 0.5)
    assert became_mask / chosen == pytest.approx(0.8, abs=4 * (0.8 * 0.2 / chosen) ** 0.5)


def test_a_row_is_masked_alike_whatever_it_is_read_with(masked: MaskedLanguageModelling) -> None:
    stream = masked.train_data()
    size = stream.epoch_size
    together = stream.samples(range(3 * size))
    for position in (0, 1, size - 1, size, 2 * size + 3):
        fresh = masked.train_data().samples([position])
        assert same(masked.collate(fresh), masked.collate([together[position]]))


def test_masks_change_with_the_epoch_the_row_and_the_seed(masked: MaskedLanguageModelling) -> None:
    def patterns(task: MaskedLanguageModelling, number: int) -> dict[Any, tuple[bool, ...]]:
        rows = epoch(task, number)
        return {row["id"]: tuple((np.asarray(row["labels"]) != -100).tolist()) for row in rows}

    first, second = patterns(masked, 0), patterns(masked, 1)
    assert first == patterns(masked, 0)
    assert first.keys() == second.keys()
    # Of 32 tokens none or the same few are chosen now and then.
    assert sum(first[row] != second[row] for row in first) > 0.95 * len(first)
    assert len(set(first.values())) > 0.95 * len(first)
    assert first != patterns(replace_seed(masked, 6), 0)


def test_masking_leaves_the_global_random_state_alone(masked: MaskedLanguageModelling) -> None:
    state = torch.get_rng_state()
    epoch(masked, 0)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_steps_hold_the_same_masked_rows_on_any_number_of_ranks_and_after_a_resume(
    masked: MaskedLanguageModelling, world_size: int
) -> None:
    def step_rows(ranks: int, position: int, steps: int) -> list[set[tuple[Any, ...]]]:
        found: list[set[tuple[Any, ...]]] = [set() for _ in range(steps)]
        for rank in range(ranks):
            with StreamReader(
                masked.train_data(),
                plan_at=lambda step: batch_plan(8, 2, ranks),
                rank=rank,
                collate=masked.collate,
                position=position,
            ) as reader:
                for rows in found:
                    for batch in reader.next_step():
                        pairs = zip(batch["input_ids"], batch["labels"], strict=True)
                        rows |= {(*ids.tolist(), *labels.tolist()) for ids, labels in pairs}
        return found

    reference = step_rows(1, 0, 30)
    assert step_rows(world_size, 0, 30) == reference
    assert step_rows(world_size, 20 * 8, 10) == reference[20:]


def test_evaluation_masks_the_same_tokens_every_time(masked: MaskedLanguageModelling) -> None:
    batches = []
    for _ in range(2):
        stream = masked.eval_data()
        assert stream.epoch_size == 6
        batches.append(masked.collate(stream.samples(range(6))))
    assert same(*batches)


def test_the_fingerprint_stands_for_rows_and_masks(masked: MaskedLanguageModelling) -> None:
    fingerprints = {
        task.train_data().fingerprint
        for task in (masked, replace_seed(masked, 6), replace(masked, masking_rate=0.3))
    }
    assert len(fingerprints) == 3
    assert masked.train_data().fingerprint in fingerprints


def test_masked_loss_is_that_of_a_slow_loop(masked: MaskedLanguageModelling) -> None:
    rows = epoch(masked, 0)[-5:]
    model, batch = masked.model().eval(), masked.collate(rows)
    slow, targets = 0.0, 0
    for row in rows:
        ids = torch.as_tensor(row["input_ids"])[None]
        real = torch.as_tensor(row["attention_mask"])
        logits = model(ids[:, real])[0]
        for t, target in enumerate(torch.as_tensor(row["labels"]).tolist()):
            if target != -100:
                slow -= torch.log_softmax(logits[t], 0)[target].item()
                targets += 1
    term = masked.loss(model, batch)["mlm"]
    assert term.per == "masked_tokens"
    assert masked.counts(batch) == {"masked_tokens": targets}
    assert term.total.item() == pytest.approx(slow, rel=1e-5)
    tally = masked.evaluate(model, batch)["loss"]
    assert (float(tally.total.detach()), tally.count) == (pytest.approx(slow, rel=1e-5), targets)  # type: ignore[union-attr]


def test_a_batch_without_masked_tokens_has_no_loss_and_no_gradient(
    masked: MaskedLanguageModelling,
) -> None:
    batch = masked.collate(epoch(masked, 0)[:2])
    batch["labels"].fill_(-100)
    model = masked.model()
    total = masked.loss(model, batch)["mlm"].total
    total.backward()
    assert total.item() == 0
    assert masked.counts(batch) == {"masked_tokens": 0}
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_flops_agree_with_the_counter(
    masked: MaskedLanguageModelling, classifier: EncoderClassification
) -> None:
    contexts = classifier.eval_data()
    for task, rows, name in (
        (masked, epoch(masked, 0), "mlm"),
        (classifier, contexts.samples(range(contexts.epoch_size)), "cls"),
    ):
        batch, model = task.collate(rows), task.model()
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            task.loss(model, batch)[name].total.backward()
        assert task.flops(batch) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_classifier_starts_from_the_masked_language_model(
    masked: MaskedLanguageModelling, classifier: EncoderClassification
) -> None:
    trained = replace_seed(masked, 99).model().state_dict()
    started = classifier.model().state_dict()
    for name, value in started.items():
        if name != "head.weight":
            assert torch.equal(value, trained[name.replace("encoder.", "bert.bert.", 1)]), name
    assert started["head.weight"].shape == (7, 32)
    again = classifier.model().state_dict()
    assert all(torch.equal(started[name], again[name]) for name in started)


def test_weights_of_another_size_are_refused(classifier: EncoderClassification) -> None:
    other = replace(classifier, encoder=replace(ENCODER, width=64))
    with pytest.raises(CheckpointError, match="do not fit EncoderLM"):
        other.model()


def test_contexts_reach_both_models_in_the_same_order(classifier: EncoderClassification) -> None:
    ours, theirs = classifier.train_data(), classifier.decoder_task.train_data()
    positions = range(4 * theirs.epoch_size)
    assert [s["id"] for s in ours.samples(positions)] == [
        s["id"] for s in theirs.samples(positions)
    ]
    assert ours.fingerprint == theirs.fingerprint


def test_encoder_logits_do_not_depend_on_the_rest_of_the_batch(
    classifier: EncoderClassification,
) -> None:
    stream, model = classifier.eval_data(), classifier.model().eval()
    samples = stream.samples(range(stream.epoch_size))
    together = classifier.logits(model, classifier.collate(samples))
    alone = [classifier.logits(model, classifier.collate([sample])) for sample in samples]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    known = [row for row, label in enumerate(LABELS) if label >= 0]
    term = classifier.loss(model, classifier.collate(samples))["cls"]
    labels = torch.tensor(LABELS)[known]
    torch.testing.assert_close(
        term.total, F.cross_entropy(together[known], labels, reduction="sum")
    )
    assert classifier.counts(classifier.collate(samples)) == {"samples": 4}


def test_the_encoder_has_a_row_for_the_mask_and_a_position_for_every_padded_token() -> None:
    codec = train_tokenizer(["a payment that never came back"], 270)
    base = Base(DECODER, codec, Location.of("/nonexistent"), None)
    config = Config()
    context = replace(config.dft.context, max_tokens=200)
    encoder = encoder_config(replace(config, dft=replace(config.dft, context=context)), base)
    assert encoder.vocab_size == codec.vocab_size + 1
    # Contexts are padded to a multiple of 16 tokens.
    assert encoder.max_positions == 208


def test_the_encoder_is_evaluated_once_an_epoch_with_the_decoders_settings() -> None:
    config = Config(encoder=EncoderBaseline(enabled=True, epochs=10))
    fit = fine_tuning_fit(config, samples=2000)
    decoder = config.dft.fit
    assert fit.evaluation.every == round(2000 / decoder.batch)
    assert (fit.epochs, fit.steps) == (10, None)
    assert (fit.batch, fit.optimizer, fit.schedule) == (
        decoder.batch,
        decoder.optimizer,
        decoder.schedule,
    )
    slower = replace(config, encoder=EncoderBaseline(lr=3e-4))
    assert fine_tuning_fit(slower, samples=10).optimizer.lr == 3e-4
    assert fine_tuning_fit(slower, samples=10).evaluation.every == 1
    assert masking_fit(config.dapt.fit, None) == config.dapt.fit
    assert masking_fit(config.dapt.fit, 7).steps == 7


def test_the_encoder_is_refused_beside_a_pretrained_decoder() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.enabled is true and model\.source is \./m"):
        Config(encoder=EncoderBaseline(enabled=True), model=ModelConfig(source="./m"))
    with pytest.raises(ConfigError, match="heads = 4 does not divide"):
        EncoderBaseline(width=90)
    with pytest.raises(ConfigError, match="masking_rate is 0"):
        EncoderBaseline(masking_rate=0)


@pytest.mark.slow
def test_both_encoder_arms_are_trained_and_measured(tmp_path: Path, ray_cluster: None) -> None:
    few = FitConfig(batch=8, micro_batch=4, steps=12, optimizer=OptimizerConfig(lr=2e-3))
    stage = LanguageModelStage(fit=few, seq_len=48, validation_rows=8)
    config = Config(
        data=DataConfig(
            simulator=SimConfig(
                unlabelled_cases=60, labelled_cases=60, validation_cases=10, test_cases=20
            ),
            min_label_count=1,
            validation_share=0.2,
        ),
        model=ModelConfig(vocab_size=400, width=32, layers=1, heads=2, max_positions=64),
        general=GeneralStage(stage, max_characters=60_000),
        dapt=stage,
        dft=ClassifierStage(
            fit=FitConfig(batch=8, micro_batch=4, epochs=4), context=ContextConfig(max_tokens=60)
        ),
        encoder=EncoderBaseline(enabled=True, width=32, layers=1, heads=2, epochs=2),
        resources=ResourcesConfig(),
    )
    with Run.create(
        Location.of(tmp_path),
        "support_templates",
        name="encoder",
        resolved_yaml="{}",
        digest="any",
        seed=0,
        tracker=TrackerConfig(enabled=False),
    ) as run:
        conversations = open_conversations(config, run)
        text = general_documents(config, run)
        base = Base(DECODER, load_codec(text.local_path), text, None)
        labelled = label(config, run, base, conversations, config.dft)
        arms = encoder_arms(config, run, base, conversations, labelled, frozenset(), "x-")
        stages = ("x-encoder-general", "x-encoder-dapt", "x-encoder-dft-general", "x-encoder-dft")
        folders = [run.folder / "stages" / stage for stage in stages]
        histories = [read_history(folder / "metrics") for folder in folders]
        again = encoder_arms(config, run, base, conversations, labelled, frozenset(), "x-")
    assert [arm.name for arm in arms] == [
        "encoder, fine-tuned",
        "encoder, adapted to the domain, fine-tuned",
    ]
    tests = len(labelled.test_rows.template_ids)
    for arm, folder, history in zip(arms, folders[2:], histories[2:], strict=True):
        assert arm.evaluation.overall.samples == tests
        # Evaluated after each of the two epochs, and the better one is measured.
        evaluated = {row["step"]: row["eval/loss"] for row in history if "eval/loss" in row}
        best = min(evaluated, key=lambda step: evaluated[step])
        about = json.loads((folder / "weights" / "best" / "about.json").read_text())
        assert about["step"] == best
        assert len(evaluated) in (2, 3)
    # The domain training goes on where the general one ended, not from random weights.
    first, second = ([row["loss"] for row in rows if "loss" in row] for rows in histories[:2])
    assert second[0] < first[0]
    # All of it is done once.
    assert [arm.evaluation for arm in again] == [arm.evaluation for arm in arms]
    assert [read_history(folder / "metrics") for folder in folders] == histories
