"""The config of mla_moe: the model, how its experts are kept busy, the training, the claim.

Defaults live here and only here; `config.yaml` is the size `laptop`, `sizes/` holds the others.
What cannot work is refused here, before anything starts.
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
from jobs.mla_moe.claim_config import ClaimConfig
from jobs.mla_moe.model_config import ModelConfig, decoder_config

EXPORTS = ("auto", "deepseek_v2", "deepseek_v3", "none")


BPE = "bpe"
LARGEST_BPE = 2**16
SMALLEST_BPE = 258
"""The bytes, the token between documents and the one that pads."""


@dataclass(frozen=True)
class DataConfig:
    """What the model learns from."""

    collection: str = field(
        default="standard_library", metadata={"choices": ("standard_library", "transformers")}
    )
    """Python sources: of the interpreter's own library, or of an installed package."""
    tokenizer: str | None = None
    """null: every byte is a token; `bpe`: model.vocab_size pieces, learnt from the sources that are
    trained on; or a folder with the tokenizer.json of the sources, or of your own tables, which the
    bundle then takes along."""
    train: str | None = None
    """Table with a column `tokens` to train on instead; given together with test."""
    test: str | None = None
    """Table with a column `tokens` to measure on instead."""
    targets: str | None = None
    """Column of both tables, as long as `tokens`, that is not zero where a token is to be learnt:
    supervised fine-tuning on the answers of conversations. Conversations are then laid end to end
    and cut into rows, and none sees another; null: every token is learnt, and rows are windows
    drawn inside documents."""
    end_of_text: int = 0
    """Token between documents; learnt after an answer, and where generation stops."""
    length: int = 128
    """Tokens of a row."""
    validation_rows: int = 256
    """Rows of the test side that are evaluated during training and no longer count as test."""
    test_rows: int | None = None
    """Rows of the test side that the result is measured on; null: all that are left."""
    preparation_workers: int = 0
    """Ray workers that read the sources; 0: in this process."""

    def __post_init__(self) -> None:
        if (self.train is None) != (self.test is None):
            raise ConfigError(
                f"train is {self.train} and test is {self.test}: give both or neither"
            )
        if self.tokenizer == BPE and self.train is not None:
            raise ConfigError(
                f"tokenizer is {BPE}, which is learnt from Python sources, but train is "
                f"{self.train}: name the folder of the tokenizer that made the table"
            )
        if self.targets is not None and self.train is None:
            raise ConfigError(
                f"targets is {self.targets}, but Python sources have no such column: give train "
                "and test"
            )
        if self.end_of_text < 0:
            raise ConfigError(f"end_of_text is {self.end_of_text}, but it must be 0 or more")
        for name in ("length", "validation_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, but it must be 1 or more")


@dataclass(frozen=True)
class BalanceConfig:
    """How experts are kept equally busy (DeepSeek-V2, 2.2.3; V3, 2.1.2)."""

    alpha_expert: float = 0.0
    """alpha1: factor of the loss that balances experts."""
    alpha_device: float = 0.0
    """alpha2: factor of the loss that balances groups."""
    alpha_communication: float = 0.0
    """alpha3: factor of the loss that balances what groups are sent."""
    gamma: float = 0.01
    """Step of the selection bias after every optimiser step (gate sigmoid); 0: it stays."""
    gamma_share: float = 1.0
    """Share of the training after which the bias stays as it is."""
    warn_max_violation: float = 4.0
    """Say so when an expert has had this much above the mean load, as a multiple of it."""
    warn_dropped_share: float = 0.2
    """Say so when a larger share of the assignments is dropped."""

    def __post_init__(self) -> None:
        for name in ("alpha_expert", "alpha_device", "alpha_communication", "gamma"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, but it must be 0 or more")
        if not 0 <= self.gamma_share <= 1:
            raise ConfigError(f"gamma_share is {self.gamma_share}; expected a share")


@dataclass(frozen=True)
class Config:
    """Everything a user can say about mla_moe."""

    seed: int = 0
    """Seed of initial weights and data order."""
    out: str = "runs"
    """Folder or URI of the runs, relative to where the command is typed."""
    data: DataConfig = field(default_factory=DataConfig)
    """What it learns from."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The decoder."""
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    """How experts are kept equally busy."""
    fit: FitConfig = field(default_factory=lambda: FitConfig(batch=32, micro_batch=32, steps=1500))
    """Batch (rows), length, optimiser."""
    export: str = field(default="auto", metadata={"choices": EXPORTS})
    """Hugging Face layout of the bundle's export; auto: V2 for the softmax gate, V3 for sigmoid."""
    claim: ClaimConfig = field(default_factory=ClaimConfig)
    """The experiment behind the claim."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """The search over other keys; what a trial is stands in sweep.py."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """The engine that serves it."""
    serve: ServeConfig = field(
        default_factory=lambda: ServeConfig(limits=LimitsConfig(request_s=600.0))
    )
    """The endpoint."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """Workers and what each needs."""
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    """The experiment tracker."""

    def __post_init__(self) -> None:
        check_config("fit", self.fit, self.resources, ("loss",))
        decoder_config(self.model)
        if self.data.end_of_text >= self.model.vocab_size:
            raise ConfigError(
                f"data.end_of_text is {self.data.end_of_text}, but model.vocab_size is "
                f"{self.model.vocab_size}"
            )
        if self.data.tokenizer == BPE:
            self._check_bpe()
        if self.data.length > self.model.max_positions:
            raise ConfigError(
                f"data.length is {self.data.length}, but model.max_positions is "
                f"{self.model.max_positions}: raise it to {self.data.length} or more"
            )
        if self.fit.precision == "fp16":
            raise ConfigError(
                "fit.precision is fp16, where the logits of a router overflow: use bf16 or fp32"
            )
        self._check_gate()
        self._check_export()
        self._check_expert_parallel()

    def _check_bpe(self) -> None:
        if self.model.source is not None:
            raise ConfigError(
                f"data.tokenizer is {BPE}, but model.source is {self.model.source}, which knows "
                "the tokens that it was trained on: name the folder of their tokenizer"
            )
        if self.data.end_of_text != 0:
            raise ConfigError(
                f"data.end_of_text is {self.data.end_of_text}, but the token that ends a text is 0 "
                f"where data.tokenizer is {BPE}"
            )
        if not SMALLEST_BPE < self.model.vocab_size <= LARGEST_BPE:
            raise ConfigError(
                f"data.tokenizer is {BPE} and model.vocab_size is {self.model.vocab_size}: "
                f"expected more than {SMALLEST_BPE} and at most {LARGEST_BPE}, as in "
                "model.vocab_size=4096"
            )

    def _check_gate(self) -> None:
        gate = self.model.experts.gate
        if gate == "softmax" and self.balance.gamma > 0:
            raise ConfigError(
                f"balance.gamma is {self.balance.gamma}, but model.experts.gate softmax has no "
                "selection bias: set balance.gamma=0 and balance by balance.alpha_expert"
            )

    def _check_export(self) -> None:
        if self.export == "none":
            return
        from models.hf_deepseek import model_type

        gate = self.model.experts.gate
        if self.export != "auto" and (self.export == "deepseek_v3") != (gate == "sigmoid"):
            raise ConfigError(
                f"export is {self.export}, but model.experts.gate is {gate}: deepseek_v2 has the "
                "gate softmax and deepseek_v3 the gate sigmoid"
            )
        try:
            model_type(decoder_config(self.model))
        except ValueError as error:
            raise ConfigError(f"export is {self.export}: {error} Or set export=none") from error

    def _check_expert_parallel(self) -> None:
        size, experts = self.resources.expert_parallel, self.model.experts
        if size is None:
            return
        if experts.routed % size:
            raise ConfigError(
                f"resources.expert_parallel is {size}, which does not divide "
                f"model.experts.routed = {experts.routed}"
            )
        if experts.groups % size and size % experts.groups:
            raise ConfigError(
                f"resources.expert_parallel is {size}, neither a multiple nor a divisor of "
                f"model.experts.groups = {experts.groups}"
            )
