"""The config of rerope: data, model, training, and how position schemes are measured.

Defaults live here and only here; `config.yaml` is the size `laptop`, `sizes/` holds the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from heliostat.config.resources import ResourcesConfig, TrackerConfig
from heliostat.errors import ConfigError
from heliostat.serve.config import LimitsConfig, ServeConfig
from heliostat.serve.generation.config import GenerationConfig
from heliostat.sweep.config import SweepConfig
from heliostat.train.config import FitConfig
from heliostat.train.preflight import check_config

SERVED_KINDS = ("rerope", "language_model")
"""Models that were trained here, and any rotary checkpoint."""
COLLECTIONS = ("standard_library", "transformers")
BACKBONES = ("transformer", "gau")
SCHEMES = (
    "rope", "pi", "ntk_old", "ntk", "ntk_fixed", "ntk_mixed", "yarn", "self_extend", "dca",
    "rerope", "leaky_rerope", "nope",
)  # fmt: skip
"""Those that a trained model can be read under; `models.positions` explains them."""


@dataclass(frozen=True)
class DataConfig:
    """Python source files of this machine, as bytes."""

    collection: str = field(default="standard_library", metadata={"choices": COLLECTIONS})
    """Which files: those of the interpreter, or those of the installed package transformers."""
    repeats: float = 0.2
    """Share of training windows that repeat their own beginning, so that the model learns to
    copy."""
    preparation_workers: int = 0
    """Ray workers that read files; 0: in this process."""

    def __post_init__(self) -> None:
        if not 0 <= self.repeats <= 1:
            raise ConfigError(f"repeats is {self.repeats}; expected a share from 0 to 1")


@dataclass(frozen=True)
class ModelConfig:
    """The language model."""

    backbone: str = field(default="transformer", metadata={"choices": BACKBONES})
    """A Llama-like transformer, or gated attention units."""
    width: int = 128
    """Width of the residual stream."""
    layers: int = 3
    """Number of blocks."""
    heads: int = 4
    """Query heads of a transformer."""
    key_value_heads: int = 4
    """Key and value heads of a transformer."""
    feed_forward_width: int = 336
    """Width inside the feed-forward layers of a transformer."""
    expansion: int = 2
    """Width of gate and value of a gated attention unit, in widths."""
    gau_head_width: int = 128
    """Width of the one head of a gated attention unit."""
    rotary_base: float = 10_000.0
    """b in the frequencies b^(-2m/R)."""
    sliding_window: int | None = None
    """v, tokens that the windowed layers of a transformer see; null: it has none."""
    full_attention_layers: int | None = None
    """f, layers that see everything, where there are windowed ones."""

    def __post_init__(self) -> None:
        if self.sliding_window is not None or self.full_attention_layers is not None:
            self._require_windowed_layers(self.sliding_window, self.full_attention_layers)
        if self.backbone == "gau":
            return
        if self.width % self.heads:
            raise ConfigError(f"width is {self.width}, which heads = {self.heads} does not divide")
        if self.heads % self.key_value_heads:
            raise ConfigError(
                f"heads is {self.heads}, which key_value_heads = {self.key_value_heads} does not "
                "divide"
            )

    def _require_windowed_layers(self, window: int | None, full: int | None) -> None:
        if window is None or full is None:
            raise ConfigError(
                f"sliding_window is {window} and full_attention_layers is {full}; give both for a "
                "model with windowed layers, or neither"
            )
        if self.backbone == "gau":
            raise ConfigError(
                f"sliding_window is {window}, but backbone is gau: only a transformer has windowed "
                "layers"
            )
        if window < 1:
            raise ConfigError(f"sliding_window is {window}; expected at least 1 token")
        if not 1 <= full < self.layers:
            raise ConfigError(
                f"full_attention_layers is {full}; expected at least 1, which schemes apply to, "
                f"and less than layers = {self.layers}"
            )


@dataclass(frozen=True)
class InverseLeakyConfig:
    """The third model: trained with a large interval beyond a window, read with plain rope."""

    window: int = 16
    """w, tokens inside which positions are exact in training; a quarter of length is usual."""
    interval: float = 1 / 16
    """k below 1: positions beyond the window are 1/k apart."""
    base_factor: float = 1.0
    """Multiplies model.rotary_base, in training and in reading."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How schemes are compared: the same last targets, with more and more context before them."""

    windows: int = 256
    """Windows of test text, 8 lengths and one token each; one half is for choosing."""
    seed: int = 1
    """Seed of the windows, the same for every model."""
    batch: int = 32
    """Windows of one forward pass."""
    position_windows: int = 64
    """Windows over which the loss by position is averaged."""

    def __post_init__(self) -> None:
        if self.windows < 2 or self.windows % 2:
            raise ConfigError(f"windows is {self.windows}; expected an even number, at least 2")


@dataclass(frozen=True)
class SchemeConfig:
    """One position scheme, as a sweep over a bundle tries it; L is the length of training, x how
    many times longer the text is. A setting that the scheme does not have stays null."""

    name: str = field(default="rerope", metadata={"choices": SCHEMES})
    """Name of the scheme."""
    log_n: str | None = field(default=None, metadata={"choices": ("none", "post", "train")})
    """Scaling of queries by the logarithm of the keys they see; null: as the model was trained,
    else post for schemes that read near and far apart, and none for the others."""
    window: int | None = None
    """Tokens inside which relative positions are exact; null: L / 2."""
    interval: float | None = None
    """k; null: x for schemes that change frequencies, 2 x for leaky_rerope."""
    group: int | None = None
    """Tokens that share a far position; null: 2 x."""
    chunk: int | None = None
    """Largest position of dual chunks; null: 3 L / 4."""
    local: int | None = None
    """Tokens before a chunk that keep exact distances; null: L / 8."""
    beta: float | None = None
    """Exponent of ntk_mixed; null: 0.625."""


@dataclass(frozen=True)
class LongTextConfig:
    """Long texts that a checkpoint is read on: `sweep=long_text`, over a bundle of
    language_model."""

    texts: str | None = None
    """Folder of documents: .txt or .md, also with .gz."""
    expansion: int = 2
    """x, the context that is read, in trained lengths."""
    trained_length: int | None = None
    """L; null: the context that the checkpoint's config gives."""
    windows: int = 4
    """Windows of text, of x L + 1 tokens each; the last L targets of each are scored."""
    seed: int = 1
    """Seed of the windows."""

    def __post_init__(self) -> None:
        for name, least in (("expansion", 2), ("windows", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least {least}")


@dataclass(frozen=True)
class ClaimConfig:
    """The experiment behind the claim."""

    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """One whole repetition for each; seed 0 is what the method was developed with."""
    parallel: int = 2
    """Trainings and measurements at the same time."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds is {self.seeds}; expected different numbers")


def _serve() -> ServeConfig:
    # A long text under several schemes takes seconds, and may wait for others like it.
    return ServeConfig(limits=LimitsConfig(request_s=120.0, answer_ms=30_000.0))


def _fit() -> FitConfig:
    return FitConfig(batch=48, micro_batch=48, steps=1500)


@dataclass(frozen=True)
class Config:
    """Everything a user can say about rerope."""

    seed: int = 0
    """Seed of initial weights and data order."""
    out: str = "runs"
    """Folder or URI of the runs, relative to where the command is typed."""
    length: int = 64
    """L, tokens that the models are trained at; they are read at up to 8 L."""
    data: DataConfig = field(default_factory=DataConfig)
    """Text."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The language model."""
    fit: FitConfig = field(default_factory=_fit)
    """The training of each model: batch (windows), length, optimiser."""
    inverse_leaky: InverseLeakyConfig = field(default_factory=InverseLeakyConfig)
    """The model trained with inverse leaky positions."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """The comparison."""
    scheme: SchemeConfig = field(default_factory=SchemeConfig)
    """The scheme of a trial of a sweep over a bundle."""
    long_text: LongTextConfig = field(default_factory=LongTextConfig)
    """Real long texts for a checkpoint that was trained elsewhere."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """The search for a scheme over one trained bundle."""
    claim: ClaimConfig = field(default_factory=ClaimConfig)
    """The experiment behind the claim."""
    generation: GenerationConfig = field(default_factory=lambda: GenerationConfig(context=4096))
    """The engine of the endpoint."""
    serve: ServeConfig = field(default_factory=_serve)
    """The endpoint."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """Workers and what each needs."""
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    """The experiment tracker."""

    def __post_init__(self) -> None:
        check_config("fit", self.fit, self.resources, ("loss",))
        if self.length < 16:
            raise ConfigError(f"length is {self.length}; expected at least 16 tokens")
        window = self.model.sliding_window
        if window is not None and window > self.length:
            raise ConfigError(
                f"model.sliding_window is {window}, but length is {self.length}: windowed layers "
                "would see distances that are not trained"
            )
        inverse = self.inverse_leaky
        if not 1 <= inverse.window < self.length or not 0 < inverse.interval < 1:
            raise ConfigError(
                f"inverse_leaky.window is {inverse.window} and inverse_leaky.interval is "
                f"{inverse.interval:g}; expected a window in [1, {self.length}) and an interval "
                "between 0 and 1"
            )
        reached = inverse.window + (self.length - 1 - inverse.window) / inverse.interval
        if reached < 8 * self.length - 1:
            raise ConfigError(
                f"inverse_leaky trains positions up to {reached:g}, but reading 8 x length = "
                f"{8 * self.length} tokens needs {8 * self.length - 1}: lower "
                "inverse_leaky.interval or inverse_leaky.window"
            )
