"""The encoder baseline: BERT from random weights, with and without adaptation to the domain.

Section 4 of Wyatte et al. (arXiv 2405.15765) fine-tunes BERT-large beside its decoders, plainly and
after masked-language-model pretraining on the transcripts. There the general knowledge comes with
the checkpoint. Here neither model has one, so the encoder gets the decoder's stage 0 on the same
general text, by masked tokens instead of next tokens. The paper chose the encoder's best epoch on
the test set; here validation chooses it, and the test set is only measured.
"""

from __future__ import annotations

from dataclasses import replace

from heliostat.data.table import Table
from heliostat.runs.run import Run
from heliostat.storage import Location
from heliostat.train.batch_schedule import samples_in
from heliostat.train.config import FitConfig
from heliostat.train.fit import FitResult, fit
from jobs.support_templates.config import Config
from jobs.support_templates.encoder_tasks import EncoderClassification, MaskedLanguageModelling
from jobs.support_templates.pipeline import (
    Base,
    Conversations,
    Labelled,
    calibrated,
    classification,
    domain_task,
    general_documents,
    language_modelling,
)
from jobs.support_templates.run_report import Arm
from jobs.support_templates.tasks import MULTIPLE, LanguageModelling
from models.encoder import EncoderConfig


def encoder_arms(
    config: Config,
    run: Run,
    base: Base,
    conversations: Conversations,
    labelled: Labelled,
    recent: frozenset[str],
    prefix: str = "",
) -> list[Arm]:
    """Pretrain, adapt and fine-tune the encoder, and measure it on the samples of the classifier.

    Args:
        config: of the run.
        run: every training is a stage of it.
        base: the tokenizer is used, the decoder is not.
        conversations: for the transcripts of the domain.
        labelled: what is fine-tuned on and measured.
        recent: recently introduced templates.
        prefix: begins the names of the stages.
    """
    settings, encoder = config.encoder, encoder_config(config, base)
    text = general_documents(config, run)
    general_rows = language_modelling(
        "general",
        config.general.training,
        base,
        documents_at=text / "train",
        validation_at=text / "validation",
        seed=config.seed,
    )

    def train(
        stage: str,
        rows: LanguageModelling,
        settled: FitConfig,
        steps: int | None,
        start_from: Location | None,
    ) -> FitResult:
        task = MaskedLanguageModelling(stage, encoder, rows, settings.masking_rate)
        return fit(
            task,
            masking_fit(settled, steps),
            run=run,
            resources=config.resources,
            name=f"{prefix}{stage}",
            start_from=start_from,
        )

    general = train(
        "encoder-general", general_rows, config.general.training.fit, settings.general_steps, None
    )
    domain_rows = domain_task(config, run, base, conversations)
    adapted = train(
        "encoder-dapt", domain_rows, config.dapt.fit, settings.dapt_steps, general.final
    )
    return [
        _fine_tuned(config, run, base, labelled, recent, encoder, weights, name, f"{prefix}{stage}")
        for name, stage, weights in (
            ("encoder, fine-tuned", "encoder-dft-general", general.final),
            ("encoder, adapted to the domain, fine-tuned", "encoder-dft", adapted.final),
        )
    ]


def encoder_config(config: Config, base: Base) -> EncoderConfig:
    """The shape of the encoder: a row for the mask token, a position for every padded token."""
    settings = config.encoder
    longest = max(
        config.general.training.seq_len, config.dapt.seq_len, config.dft.context.max_tokens
    )
    return EncoderConfig(
        vocab_size=base.codec.vocab_size + 1,
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
        max_positions=-(-longest // MULTIPLE) * MULTIPLE,
        dropout=settings.dropout,
    )


def masking_fit(decoder_fit: FitConfig, steps: int | None) -> FitConfig:
    """The decoder's training with other steps where they are given; BERT recomputes nothing."""
    plain = replace(decoder_fit, activation_checkpointing=False)
    return plain if steps is None else replace(plain, steps=steps, epochs=None)


def fine_tuning_fit(config: Config, samples: int) -> FitConfig:
    """The decoder's fine-tuning for the encoder's epochs, evaluated after each of them."""
    fit_config = config.dft.fit
    lr = config.encoder.lr if config.encoder.lr is not None else fit_config.optimizer.lr
    return replace(
        fit_config,
        steps=None,
        epochs=config.encoder.epochs,
        activation_checkpointing=False,
        optimizer=replace(fit_config.optimizer, lr=lr),
        evaluation=replace(fit_config.evaluation, every=max(1, round(samples / fit_config.batch))),
    )


def _fine_tuned(
    config: Config,
    run: Run,
    base: Base,
    labelled: Labelled,
    recent: frozenset[str],
    encoder: EncoderConfig,
    pretrained: Location,
    name: str,
    stage: str,
) -> Arm:
    samples = Table.open(labelled.train).rows
    task = EncoderClassification(
        name="encoder-dft",
        encoder=encoder,
        pretrained=pretrained,
        decoder_task=classification("dft", config, config.dft, base, labelled, base.weights),
    )
    trained = fit(
        task, fine_tuning_fit(config, samples), run=run, resources=config.resources, name=stage
    )
    evaluation, _ = calibrated(task, trained.best, config, config.dft, labelled, recent)
    best = trained.outcome.best_step or trained.outcome.step
    epoch = samples_in(config.dft.fit, best) / samples
    return Arm(name, evaluation, f"epoch {epoch:.0f} of {config.encoder.epochs:g}, by validation")
