"""The config of support_templates: a typed section for each part of the pipeline.

Defaults live here and only here; `config.yaml` is the size `laptop`, `sizes/` holds the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from heliostat.config.resources import ResourcesConfig, TrackerConfig
from heliostat.errors import ConfigError
from heliostat.serve.config import ServeConfig
from heliostat.sweep.config import SweepConfig
from heliostat.train.config import FitConfig
from heliostat.train.preflight import check_config
from jobs.support_templates.contexts import ContextConfig
from jobs.support_templates.data.sim_config import SimConfig
from models.decoder_config import DecoderConfig, gpt_neox_config

RANDOM_WEIGHTS = "config"
"""The source of a model that starts from random weights."""
CLASSIFIER_MEASURES = ("loss", "top1", "top3", "top5")
"""What an evaluation of the classifier gives."""


@dataclass(frozen=True)
class DataConfig:
    """Where conversations come from, and how they are divided."""

    cases: str | None = None
    """Parquet file or folder of your support cases; null: the simulator."""
    templates: str | None = None
    """Parquet file of your reply templates; given together with cases."""
    simulator: SimConfig = field(default_factory=SimConfig)
    """The simulated support chat, used when cases is null."""
    salt: str = "support_templates"
    """Salt of the hash that puts each case on its side; another salt is another split."""
    test_share: float = 0.5
    """Share of your cases that is held out for the final evaluation."""
    validation_share: float = 0.05
    """Share of the training cases kept for early decisions and calibration."""
    min_label_count: int = 10
    """Templates seen less often in training are left out of the label map, and reported."""
    presidio: bool = False
    """Also redact with presidio (pip install 'heliostat[presidio]')."""
    preparation_workers: int = 0
    """Ray workers that redact and tokenise; 0: in this process."""

    def __post_init__(self) -> None:
        if (self.cases is None) != (self.templates is None):
            raise ConfigError(
                f"cases is {self.cases} and templates is {self.templates}: give both or neither"
            )
        for name in ("test_share", "validation_share"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a share above 0")


@dataclass(frozen=True)
class ModelConfig:
    """The decoder that is adapted and fine-tuned."""

    source: str = RANDOM_WEIGHTS
    """`config`: random weights of the sizes below, pretrained in stage 0; else a folder in Hugging
    Face layout, or the name of a model on a hub."""
    vocab_size: int = 2048
    """Size of the byte-level BPE trained in stage 0; unused with another source."""
    width: int = 96
    """Width of the residual stream; unused with another source."""
    layers: int = 3
    """Number of blocks; unused with another source."""
    heads: int = 4
    """Attention heads; unused with another source."""
    max_positions: int = 512
    """Longest sequence; unused with another source."""
    family: str = field(default="gpt_neox", metadata={"choices": ("gpt_neox",)})
    """Architecture of random weights; unused with another source."""


def decoder_of(model: ModelConfig) -> DecoderConfig:
    """The decoder of random weights; raises `ConfigError` where the sizes do not go together."""
    try:
        return gpt_neox_config(
            vocab_size=model.vocab_size,
            width=model.width,
            layers=model.layers,
            heads=model.heads,
            max_positions=model.max_positions,
        )
    except ValueError as error:
        raise ConfigError(str(error).rstrip(".")) from None


@dataclass(frozen=True)
class LanguageModelStage:
    """Next-token training: stage 0 (general text) or stage 1 (domain-adaptive pretraining)."""

    fit: FitConfig = field(default_factory=lambda: FitConfig(batch=16, micro_batch=16, steps=300))
    """Batch (rows), length, optimiser."""
    seq_len: int = 128
    """Tokens of a row."""
    isolate_documents: bool = False
    """Attend and count positions within each document only, not across a packed row."""
    validation_rows: int = 64
    """Rows held out for the validation loss."""


@dataclass(frozen=True)
class GeneralStage:
    """Stage 0: English from the documentation of installed packages, only for source `config`."""

    training: LanguageModelStage = field(default_factory=LanguageModelStage)
    """The training on it."""
    max_characters: int | None = 6_000_000
    """Stop collecting text after this many characters; null: all there is."""


@dataclass(frozen=True)
class ClassifierStage:
    """Stage 2: discriminative fine-tuning."""

    fit: FitConfig = field(default_factory=lambda: FitConfig(batch=32, micro_batch=32, epochs=4))
    """Batch (samples), length, optimiser."""
    context: ContextConfig = field(default_factory=ContextConfig)
    """How the conversation before the reply is cut and joined."""
    pooling: str = field(default="last", metadata={"choices": ("last", "mean")})
    """Which hidden state is classified: that of the last token, or the mean."""
    label_budget: int | None = None
    """Use only this many labelled messages for training; null: all."""
    label_smoothing: float = 0.0
    """Share of the target that all templates of the label map divide evenly (ours)."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                f"label_smoothing is {self.label_smoothing}; expected 0 or more, below 1"
            )


@dataclass(frozen=True)
class EncoderBaseline:
    """The encoder of similar size that the method is compared with (BERT, from random weights).

    It reads what the decoder reads, with the decoder's batches, optimisers and schedules.
    """

    enabled: bool = False
    """Train it too: with and without masked-language-model pretraining on the domain."""
    width: int = 96
    """Width of the residual stream."""
    layers: int = 3
    """Number of blocks."""
    heads: int = 4
    """Attention heads."""
    dropout: float = 0.1
    """Share of hidden states and attention weights left out in training."""
    masking_rate: float = 0.15
    """Share of tokens to predict in masked-language-model training."""
    general_steps: int | None = None
    """Steps of masked-language-model training on general text; null: the decoder's stage 0."""
    dapt_steps: int | None = None
    """Steps of masked-language-model training on the domain; null: the decoder's stage 1."""
    lr: float | None = None
    """Peak learning rate of fine-tuning; null: the decoder's."""
    epochs: float = 10
    """Passes over the labelled messages; the best pass by validation is kept."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"width is {self.width}, which heads = {self.heads} does not divide")
        if not 0 < self.masking_rate < 1:
            raise ConfigError(f"masking_rate is {self.masking_rate}; expected a share above 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; expected a share below 1")


@dataclass(frozen=True)
class ClaimConfig:
    """The experiment behind the claim."""

    seeds: list[int] = field(default_factory=lambda: [4, 5, 6])
    """One whole repetition for each; seed 0 is what the method was developed with."""
    label_budgets: list[int] = field(default_factory=lambda: [500, 2000])
    """Labelled messages for training."""
    short_epochs: list[float] = field(default_factory=lambda: [12, 4])
    """Epochs of the short schedule for each budget."""
    short_lr: float = 1e-3
    """Peak learning rate of the short schedule."""
    long_epochs: list[float] = field(default_factory=lambda: [25, 10])
    """Epochs of the long schedule for each budget."""
    long_lr: float = 2e-3
    """Peak learning rate of the long schedule."""
    second_width: int = 64
    """Width of the smaller model of the scaling report."""
    second_layers: int = 2
    """Layers of the smaller model of the scaling report."""
    parallel: int = 2
    """Trainings at the same time."""

    def __post_init__(self) -> None:
        lengths = {len(self.label_budgets), len(self.short_epochs), len(self.long_epochs)}
        if len(lengths) != 1:
            raise ConfigError(
                f"label_budgets {self.label_budgets}, short_epochs {self.short_epochs} and "
                f"long_epochs {self.long_epochs} need the same length"
            )


@dataclass(frozen=True)
class SuggestConfig:
    """What the endpoint does besides classifying."""

    templates: str | None = field(default=None, metadata={"is_served_path": True})
    """Parquet file of today's reply templates: those retired since are not suggested any more;
    null: the templates of the bundle."""
    holdout_per_10_000: int = 200
    """Pairs of advocate and case, of 10,000, that see no suggestions, to measure what they save."""
    holdout_salt: str = "heliostat-holdout"
    """Salt of the hash that chooses them; another salt is another holdout."""
    max_tokens: int | None = None
    """Longest context; null: that of the bundle's training."""
    temperature: float | None = None
    """What logits are divided by; null: what the bundle was calibrated with."""
    min_probability: float = 0.0
    """Suggestions less probable than this are left out, where a request does not say."""

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}; expected 1 or more, or null")
        if self.temperature is not None and self.temperature <= 0:
            raise ConfigError(f"temperature is {self.temperature}; expected above 0, or null")
        if not 0 <= self.min_probability <= 1:
            raise ConfigError(f"min_probability is {self.min_probability}; expected 0 to 1")
        if not 0 <= self.holdout_per_10_000 <= 10_000:
            raise ConfigError(
                f"holdout_per_10_000 is {self.holdout_per_10_000}; expected 0 to 10000"
            )


@dataclass(frozen=True)
class Config:
    """Everything a user can say about support_templates."""

    seed: int = 0
    """Seed of initial weights, data order and sampling."""
    out: str = "runs"
    """Folder or URI of the runs, relative to where the command is typed."""
    data: DataConfig = field(default_factory=DataConfig)
    """Conversations."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The decoder."""
    general: GeneralStage = field(default_factory=GeneralStage)
    """Stage 0: general pretraining, when the model starts from random weights."""
    dapt: LanguageModelStage = field(default_factory=LanguageModelStage)
    """Stage 1: domain-adaptive pretraining."""
    dft: ClassifierStage = field(default_factory=ClassifierStage)
    """Stage 2: the classifier."""
    adapted: bool = False
    """The checkpoint at `model.source` is what an earlier run has adapted (its folder `adapted`):
    stage 1 is left out."""
    compare: bool = True
    """Also fine-tune without domain adaptation, to show what it is worth; not where `adapted`."""
    encoder: EncoderBaseline = field(default_factory=EncoderBaseline)
    """The encoder baseline."""
    claim: ClaimConfig = field(default_factory=ClaimConfig)
    """The experiment behind the claim."""
    serve: ServeConfig = field(default_factory=ServeConfig)
    """The endpoint."""
    suggest: SuggestConfig = field(default_factory=SuggestConfig)
    """What the endpoint does besides classifying."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """The search over other keys; what a trial can be is in sweep.py."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """Workers and what each needs."""
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    """The experiment tracker."""

    def __post_init__(self) -> None:
        fits = {"dapt.fit": self.dapt.fit, "dft.fit": self.dft.fit}
        if self.model.source == RANDOM_WEIGHTS:
            fits["general.training.fit"] = self.general.training.fit
        for name, settings in fits.items():
            measures = CLASSIFIER_MEASURES if name == "dft.fit" else ("loss",)
            check_config(name, settings, self.resources, measures)
        if self.adapted and self.model.source == RANDOM_WEIGHTS:
            raise ConfigError(
                f"adapted is true and model.source is {RANDOM_WEIGHTS}: name the folder adapted/ "
                "of an earlier run, model.source=runs/NAME/adapted"
            )
        if self.encoder.enabled and self.model.source != RANDOM_WEIGHTS:
            raise ConfigError(
                f"encoder.enabled is true and model.source is {self.model.source}: the encoder "
                "starts from random weights, so it is only compared with a decoder that does; set "
                "encoder.enabled=false or model.source=config"
            )
        if self.model.source == RANDOM_WEIGHTS:
            decoder_of(self.model)
            longest = max(self.dapt.seq_len, self.dft.context.max_tokens)
            if longest > self.model.max_positions:
                raise ConfigError(
                    f"model.max_positions is {self.model.max_positions}, but dapt.seq_len is "
                    f"{self.dapt.seq_len} and dft.context.max_tokens is "
                    f"{self.dft.context.max_tokens}: raise it to {longest} or more"
                )
