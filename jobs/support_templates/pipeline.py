"""The pieces that a run and the claim are made of: data, pretraining, fine-tuning, measuring.

Each piece is a stage of the run (or a table in the cache), so it is done once; a run that goes on
finds what is finished and continues what is not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from heliostat.data.stream import RowStream
from heliostat.data.table import Table, TableWriter
from heliostat.errors import DataError
from heliostat.runs.run import Run
from heliostat.storage import Location
from heliostat.train.fit import FitResult, fit
from heliostat.train.predict import Predictor, predict
from heliostat.train.task import Batch
from jobs.corpora.tokenizer import (
    FILE,
    TextCodec,
    load_codec,
    train_tokenizer,
    write_codec,
)
from jobs.support_templates.config import (
    RANDOM_WEIGHTS,
    ClassifierStage,
    Config,
    LanguageModelStage,
    decoder_of,
)
from jobs.support_templates.data.rows import Template
from jobs.support_templates.data.schema import read_templates, refuse_repeated_cases
from jobs.support_templates.data.sim_config import POOLS
from jobs.support_templates.evaluation import (
    Evaluation,
    ScoredSamples,
    Scores,
    evaluate,
    fitted_temperature,
)
from jobs.support_templates.label_map import LabelMap, build_label_map, label_map_from_json
from jobs.support_templates.model_source import open_pretrained
from jobs.support_templates.preparation import (
    documents,
    labelled_samples,
    redact_cases,
    text_documents,
)
from jobs.support_templates.split import (
    PRETRAIN,
    PRETRAIN_VALIDATION,
    SideRule,
    check_no_shared_case,
    drawn,
)
from jobs.support_templates.tasks import LanguageModelling, TemplateClassification
from models.decoder_config import DecoderConfig

VALIDATION_PARAGRAPHS = 400
BEYOND_BUDGET, CUT_INSIDE = "beyond_label_budget", "cut_inside"
"""Reasons among what was skipped: labelled messages of training that were not drawn, and contexts
that begin inside a message, which are not skipped but cut."""
LABELLED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("tokens", pa.list_(pa.field("item", pa.uint16(), nullable=False)), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("template_id", pa.string(), nullable=False),
        pa.field("depth", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Conversations:
    """The redacted cases and their templates."""

    redacted: Table
    templates: Mapping[str, Template]
    is_generated: bool
    has_real_openings: bool

    @property
    def pretrain_sides(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Sides whose transcripts are trained on, and sides whose transcripts are held out."""
        if self.is_generated:
            return (PRETRAIN,), (PRETRAIN_VALIDATION,)
        return ("train",), ("validation",)

    @property
    def redactor_version(self) -> str:
        """The version that every text was redacted with."""
        return self.redacted.metadata["redactor_version"]


@dataclass(frozen=True)
class Base:
    """The decoder before it has seen the domain."""

    decoder: DecoderConfig
    codec: TextCodec
    weights: Location
    general: FitResult | None
    """The stage-0 training; None with a checkpoint."""

    @property
    def pad(self) -> int:
        """What contexts are padded with; masked, so any id does where there is no padding token."""
        return self.codec.pad if self.codec.pad is not None else self.codec.end_of_text


@dataclass(frozen=True)
class Labelled:
    """Labelled contexts under one label map."""

    label_map: LabelMap
    train: Location
    validation: Location
    test: Location
    dropped: Mapping[str, int]
    """Templates too rare for the label map."""
    skipped: Mapping[str, int]
    """Labelled messages without a context."""

    @cached_property
    def test_rows(self) -> ScoredSamples:
        """What evaluation needs to know of the test samples."""
        return scored_samples(self.test)


def open_conversations(config: Config, run: Run) -> Conversations:
    """Read (or simulate) the cases and redact them."""
    data = config.data
    rule = SideRule(None, data.salt, data.test_share, data.validation_share)
    if data.cases is None:
        raw = simulated(config, run)
        sources = [(raw / f"cases-{pool}.parquet", replace(rule, pool=pool)) for pool in POOLS]
        templates = read_templates(raw / "templates.parquet")
    else:
        assert data.templates is not None
        sources = [(Location.of(data.cases), rule)]
        # Chunks are read apart from each other, so none of them could notice.
        refuse_repeated_cases(Location.of(data.cases))
        templates = read_templates(Location.of(data.templates))
    redacted = redact_cases(
        sources,
        templates=frozenset(templates),
        presidio=data.presidio,
        cache=run.cache,
        workers=data.preparation_workers,
    )
    real_openings = data.cases is not None or data.simulator.seed_utterances is not None
    return Conversations(redacted, templates, data.cases is None, real_openings)


def simulated(config: Config, run: Run) -> Location:
    """The simulated chat as raw tables, made once."""
    from jobs.support_templates.data.support_sim import cached_simulation

    return cached_simulation(config.data.simulator, run.cache)


def open_base(config: Config, run: Run, *, prefix: str = "") -> Base:
    """Stage 0, or the checkpoint that stands in its place; `prefix` begins the stage's name."""
    if config.model.source != RANDOM_WEIGHTS:
        found = open_pretrained(config.model.source, run.cache)
        return Base(found.decoder, found.codec, found.weights, None)
    folder = general_documents(config, run)
    begun = pretrained_base(config, run, folder, folder)
    task = language_modelling(
        "general",
        config.general.training,
        begun,
        documents_at=folder / "train",
        validation_at=folder / "validation",
        seed=config.seed,
    )
    general = fit(
        task,
        config.general.training.fit,
        run=run,
        resources=config.resources,
        name=f"{prefix}general",
    )
    return replace(begun, weights=general.final, general=general)


def pretrained_base(config: Config, run: Run, tokenizer: Location, weights: Location) -> Base:
    """The decoder with weights that were trained before, and the tokenizer of stage 0.

    With a checkpoint in place of stage 0, `tokenizer` is not looked at.
    """
    if config.model.source != RANDOM_WEIGHTS:
        found = open_pretrained(config.model.source, run.cache)
        return Base(found.decoder, found.codec, weights, None)
    codec = load_codec(tokenizer.local_path) if tokenizer.is_local else _remote_codec(tokenizer)
    return Base(decoder_of(config.model), codec, weights, None)


def adapt(
    config: Config, run: Run, base: Base, conversations: Conversations, *, name: str = "dapt"
) -> FitResult:
    """Stage 1: next-token training on the transcripts of the domain."""
    return fit(
        domain_task(config, run, base, conversations),
        config.dapt.fit,
        run=run,
        resources=config.resources,
        name=name,
        start_from=base.weights,
    )


def domain_task(
    config: Config, run: Run, base: Base, conversations: Conversations
) -> LanguageModelling:
    """The task of stage 1; prepares the transcripts."""
    train, held_out = conversations.pretrain_sides
    workers = config.data.preparation_workers
    return language_modelling(
        "dapt",
        config.dapt,
        base,
        documents_at=documents(
            conversations.redacted, train, base.codec, run.cache, workers
        ).location,
        validation_at=documents(
            conversations.redacted, held_out, base.codec, run.cache, workers
        ).location,
        seed=config.seed,
        redactor_version=conversations.redactor_version,
    )


def language_modelling(
    name: str,
    stage: LanguageModelStage,
    base: Base,
    *,
    documents_at: Location,
    validation_at: Location,
    seed: int,
    redactor_version: str | None = None,
) -> LanguageModelling:
    """The task of stage 0 or 1."""
    return LanguageModelling(
        name=name,
        decoder=base.decoder,
        documents=documents_at,
        validation=validation_at,
        seq_len=stage.seq_len,
        end_of_text=base.codec.end_of_text,
        pad=base.codec.pad,
        seed=seed,
        validation_rows=stage.validation_rows,
        isolate_documents=stage.isolate_documents,
        redactor_version=redactor_version,
    )


def label(
    config: Config,
    run: Run,
    base: Base,
    conversations: Conversations,
    stage: ClassifierStage,
    *,
    name: str = "labels",
) -> Labelled:
    """Draw the label budget, freeze the label map, and index the samples of every side."""
    tables = {
        side: labelled_samples(
            conversations.redacted,
            side,
            base.codec,
            stage.context,
            run.cache,
            config.data.preparation_workers,
        )
        for side in ("train", "validation", "test")
    }
    key = {
        "tables": {side: table.fingerprint for side, table in tables.items()},
        "budget": stage.label_budget,
        "min_label_count": config.data.min_label_count,
        "seed": config.seed,
    }

    def work(folder: Location) -> dict[str, object]:
        check_no_shared_case(
            {side: table.column("case_id").to_pylist() for side, table in tables.items()}  # type: ignore[misc]
        )
        return _write_labelled(config, tables, stage.label_budget, folder)

    done = run.stage(name, key, work)
    folder = run.folder / "stages" / name
    return Labelled(
        label_map=label_map_from_json(str(done["label_map"])),
        train=folder / "train",
        validation=folder / "validation",
        test=folder / "test",
        dropped=done["dropped"],  # type: ignore[arg-type]
        skipped=done["skipped"],  # type: ignore[arg-type]
    )


def classification(
    name: str, config: Config, stage: ClassifierStage, base: Base, labelled: Labelled,
    pretrained: Location,
) -> TemplateClassification:  # fmt: skip
    """The task of stage 2."""
    return TemplateClassification(
        name=name,
        decoder=base.decoder,
        pretrained=pretrained,
        classes=len(labelled.label_map),
        samples=labelled.train,
        validation=labelled.validation,
        pad=base.pad,
        seed=config.seed,
        pooling=stage.pooling,
        label_smoothing=stage.label_smoothing,
    )


@dataclass(frozen=True)
class Classifier:
    """A fine-tuned classifier with its scores on the test side."""

    task: TemplateClassification
    trained: FitResult
    evaluation: Evaluation
    test_scores: Scores


def fine_tune(
    name: str,
    config: Config,
    run: Run,
    stage: ClassifierStage,
    base: Base,
    labelled: Labelled,
    pretrained: Location,
    recent: frozenset[str],
) -> Classifier:
    """Stage 2 from given weights, calibrated on validation and measured on test."""
    task = classification("dft", config, stage, base, labelled, pretrained)
    trained = fit(task, stage.fit, run=run, resources=config.resources, name=name)
    evaluation, test_scores = calibrated(task, trained.final, config, stage, labelled, recent)
    return Classifier(task, trained, evaluation, test_scores)


class ContextClassifier(Predictor, Protocol):
    """The part of a classifier's task that measuring needs."""

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Scores over the label map: [B, C]."""
        ...


def calibrated(
    task: ContextClassifier,
    weights: Location,
    config: Config,
    stage: ClassifierStage,
    labelled: Labelled,
    recent: frozenset[str],
) -> tuple[Evaluation, Scores]:
    """Fit the temperature on validation and measure on test; with the scores on the test side."""

    def scores(side: Location) -> Scores:
        return predict(
            task,
            task.logits,
            weights,
            RowStream(side, seed=0, shuffle=False),
            resources=config.resources,
            batch_size=stage.fit.micro_batch,
        )

    validation, test = scores(labelled.validation), scores(labelled.test)
    held_out = scored_samples(labelled.validation).template_ids
    temperature = fitted_temperature(validation, held_out, labelled.label_map)
    return measure(test, labelled, temperature, recent), test


def measure(
    scores: Scores, labelled: Labelled, temperature: float, recent: frozenset[str]
) -> Evaluation:
    """The evaluation of any arm on the test side."""
    return evaluate(
        scores,
        labelled.test_rows,
        labelled.label_map,
        temperature=temperature,
        recent=recent,
        skipped={**labelled.skipped, **{f"rare: {t}": n for t, n in labelled.dropped.items()}},
    )


def scored_samples(samples: Location) -> ScoredSamples:
    """What evaluation needs to know of a table of labelled contexts."""
    table = Table.open(samples)
    return ScoredSamples(
        template_ids=table.column("template_id").to_pylist(),
        depths=table.column("depth").to_pylist(),
    )


def general_documents(config: Config, run: Run) -> Location:
    """Tokenizer and token documents of the general corpus, made once."""
    from jobs.support_templates.data.general_corpus import general_corpus

    settings = f"{config.general.max_characters}-{config.model.vocab_size}"

    def work(folder: Location) -> dict[str, object]:
        corpus = general_corpus(config.general.max_characters)
        texts = list(corpus.paragraphs)
        held_out = max(1, min(VALIDATION_PARAGRAPHS, len(texts) // 10))
        # It never sees the domain, so that stage 1 is not helped by a vocabulary made for it.
        codec = train_tokenizer(texts[held_out:], config.model.vocab_size)
        if codec.vocab_size != config.model.vocab_size:
            raise DataError(
                f"the general corpus gives only {codec.vocab_size} tokens, but model.vocab_size "
                f"is {config.model.vocab_size}: lower it, or raise general.max_characters"
            )
        write_codec(codec, folder)
        origin = {"source": "docstrings of installed packages", "corpus": corpus.fingerprint}
        text_documents(texts[held_out:], codec, folder / "train", origin)
        text_documents(texts[:held_out], codec, folder / "validation", origin)
        return {"paragraphs": len(texts), "characters": corpus.characters}

    run.stage("general-text", {"settings": settings}, work)
    return run.folder / "stages" / "general-text"


def _remote_codec(folder: Location) -> TextCodec:
    from jobs.corpora.tokenizer import codec_of

    return codec_of((folder / FILE).read_text(), folder.uri)


def _write_labelled(
    config: Config, tables: Mapping[str, Table], budget: int | None, folder: Location
) -> dict[str, object]:
    train = tables["train"]
    ids = train.column("sample_id").to_pylist()
    # The salt of the draw holds the seed, so that seeds differ in their labels as well.
    rows = drawn(
        ids, budget if budget is not None else len(ids), f"{config.data.salt}{config.seed}"
    )
    chosen = train.take(np.asarray(rows, dtype=np.int64))
    counts = Counter(chosen.column("template_id").to_pylist())
    built = build_label_map(
        counts, min_label_count=config.data.min_label_count, created_at=datetime.now(UTC)
    )
    kept = np.flatnonzero(built.label_map.indices(chosen.column("template_id").to_pylist()) >= 0)
    skipped: Counter[str] = Counter({BEYOND_BUDGET: len(ids) - len(rows)})
    for side, table in tables.items():
        skipped.update(json.loads(table.metadata["rejected"]))
        skipped[CUT_INSIDE] += sum(table.column("cut_inside").to_pylist())
        everything = np.arange(table.rows)
        rows_of_side = np.asarray(rows)[kept] if side == "train" else everything
        _write_side(table, rows_of_side, built.label_map, folder / side)
    return {
        "label_map": built.label_map.to_json(),
        "dropped": dict(built.dropped),
        "skipped": {reason: count for reason, count in skipped.items() if count},
    }


def _write_side(table: Table, rows: np.ndarray, label_map: LabelMap, location: Location) -> None:
    location.delete()
    with TableWriter(location, LABELLED_SCHEMA, dict(table.metadata)) as writer:
        for start in range(0, len(rows), 1024):
            part = table.take(rows[start : start + 1024])
            labels = label_map.indices(part.column("template_id").to_pylist())
            columns = {
                "id": part.column("sample_id"),
                "tokens": part.column("tokens"),
                "label": pa.array(labels.astype(np.int32)),
                "template_id": part.column("template_id"),
                "depth": part.column("depth"),
            }
            for batch in pa.table(columns, schema=LABELLED_SCHEMA).combine_chunks().to_batches():
                writer.write(batch)
