"""The two things that gradient descent trains here: a language model and a classifier of contexts.

Section 4 of Wyatte et al. (arXiv 2405.15765): domain-adaptive pretraining is next-token prediction
over packed transcripts; discriminative fine-tuning trains the same decoder, without its output
embedding and with a linear head, on the context before each labelled reply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import nn

from heliostat.data.stream import PackedStream, RowStream, Sample, Stream
from heliostat.storage import Location
from heliostat.train.engine import decay_groups
from heliostat.train.task import Batch, LossTerm, Tally
from heliostat.train.weights import read_weights
from models.classifier import DecoderClassifier, Pooling
from models.counting import classifier_training_flops, lm_training_flops
from models.decoder import Decoder, DecoderLM
from models.decoder_config import DecoderConfig
from models.losses import IGNORED, classification_loss, next_token_targets
from models.metrics import label_ranks

HEAD_SEED = 7919
"""Added to the seed for the head, so that it is not drawn like the decoder's first rows."""
MULTIPLE = 16
"""Contexts are padded to a multiple of this many tokens: fewer shapes, and still little padding."""


@dataclass(frozen=True)
class LanguageModelling:
    """Next-token prediction over packed documents (stages 0 and 1)."""

    name: str
    decoder: DecoderConfig
    documents: Location
    validation: Location
    seq_len: int
    end_of_text: int
    pad: int | None
    seed: int
    validation_rows: int
    isolate_documents: bool = False
    redactor_version: str | None = None
    """The version that the documents must have been redacted with; None for general text."""

    def model(self) -> nn.Module:
        """Random initial weights; a checkpoint's come in through `fit(start_from=...)`."""
        return DecoderLM(self.decoder, torch.Generator().manual_seed(self.seed))

    def meta_model(self) -> nn.Module:
        """The model without numbers, for estimates."""
        with torch.device("meta"):
            return DecoderLM(self.decoder, torch.Generator(device="cpu"))

    def train_data(self) -> Stream:
        """Rows packed anew for every epoch."""
        return self._stream(self.documents, self.seed)

    def eval_data(self) -> Stream:
        """Rows of the held-out documents, the same ones whatever the seed."""
        return _Head(self._stream(self.validation, seed=0), self.validation_rows)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack rows."""
        names = ("input_ids", "labels", "document_ids")
        return {
            name: torch.from_numpy(np.stack([cast(np.ndarray, row[name]) for row in samples]))
            for name in names
        }

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """Target tokens: every token but the first of a row, and no padding."""
        return {"tokens": int((batch["labels"][:, 1:] != IGNORED).sum())}

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        """Cross entropy summed over targets."""
        return {"lm": LossTerm(self._sum(model, batch), "tokens")}

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tally]:
        """Mean cross entropy, nats a token."""
        return {"loss": Tally(self._sum(model, batch), self.counts(batch)["tokens"])}

    def parameter_groups(self, model: nn.Module) -> list[dict[str, object]]:
        """No weight decay on biases and norms."""
        return decay_groups(model)

    def flops(self, batch: Batch) -> float:
        """Of forward and backward; attention counted in full, as torch's counter does."""
        rows, tokens = batch["input_ids"].shape
        targets = self.counts(batch)["tokens"]
        return lm_training_flops(self.decoder, batch=rows, tokens=tokens, targets=targets)

    def example_batch(self, samples: int) -> Batch:
        """Full rows, for estimates."""
        rows = torch.zeros((samples, self.seq_len), dtype=torch.int64)
        return {"input_ids": rows, "labels": rows, "document_ids": rows.int()}

    def _sum(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        total: torch.Tensor = model(
            batch["input_ids"],
            document_ids=batch["document_ids"].clamp(min=0) if self.isolate_documents else None,
            targets_BT=next_token_targets(batch["labels"]),
        )
        return total

    def _stream(self, documents: Location, seed: int) -> PackedStream:
        version = self.redactor_version
        return PackedStream(
            documents,
            seq_len=self.seq_len,
            seed=seed,
            end_of_text=self.end_of_text,
            pad=self.pad,
            require={"redactor_version": version} if version is not None else {},
        )


@dataclass(frozen=True)
class TemplateClassification:
    """Which template answers this conversation (stage 2)."""

    name: str
    decoder: DecoderConfig
    pretrained: Location | None
    """Weights of a language model to start from; None: random weights."""
    classes: int
    samples: Location
    validation: Location
    pad: int
    seed: int
    pooling: str = "last"
    label_smoothing: float = 0.0
    """Of training alone; an evaluation measures the plain cross entropy."""
    max_tokens: int = 512
    """Longest context; only estimates need it."""

    def model(self) -> nn.Module:
        """The pretrained decoder without its output embedding, and a fresh head."""
        decoder = Decoder(self.decoder, torch.Generator().manual_seed(self.seed))
        if self.pretrained is not None:
            weights = read_weights(self.pretrained)
            prefix = "decoder."
            decoder.load_state_dict(
                {
                    name.removeprefix(prefix): value
                    for name, value in weights.items()
                    if name.startswith(prefix)
                }
            )
        return self._classifier(decoder)

    def meta_model(self) -> nn.Module:
        """The model without numbers, for estimates."""
        with torch.device("meta"):
            generator = torch.Generator(device="cpu")
            return DecoderClassifier(Decoder(self.decoder, generator), self.classes, generator)

    def train_data(self) -> Stream:
        """Labelled contexts, shuffled for every epoch."""
        return RowStream(self.samples, seed=self.seed)

    def eval_data(self) -> Stream:
        """The labelled contexts of the validation side."""
        return RowStream(self.validation, seed=0, shuffle=False)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Pad on the right to the longest context."""
        contexts = [cast(np.ndarray, sample["tokens"]).astype(np.int64) for sample in samples]
        longest = max(map(len, contexts))
        width = -(-longest // MULTIPLE) * MULTIPLE
        input_ids = np.full((len(contexts), width), self.pad, dtype=np.int64)
        mask = np.zeros((len(contexts), width), dtype=bool)
        for row, context in enumerate(contexts):
            input_ids[row, : len(context)] = context
            mask[row, : len(context)] = True
        labels = np.array([cast(int, sample["label"]) for sample in samples], dtype=np.int64)
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(labels),
        }

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """Contexts whose template is in the label map."""
        return {"samples": int((batch["labels"] >= 0).sum())}

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        """Cross entropy summed over contexts."""
        total = self._loss(self.logits(model, batch), batch, self.label_smoothing)
        return {"cls": LossTerm(total, "samples")}

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tally]:
        """Loss over labels in the map; accuracies over all rows, a label outside it is a miss."""
        logits = self.logits(model, batch)
        labels = batch["labels"]
        ranks = label_ranks(logits.float(), labels.clamp(min=0))
        ranks = torch.where(labels >= 0, ranks, torch.iinfo(ranks.dtype).max)
        tallies = {"loss": Tally(self._loss(logits, batch), self.counts(batch)["samples"])}
        for k in (1, 3, 5):
            tallies[f"top{k}"] = Tally((ranks < k).sum(), len(labels))
        return tallies

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Scores over the label map: [B, C]."""
        scores: torch.Tensor = model(batch["input_ids"], attention_mask=batch["attention_mask"])
        return scores

    def parameter_groups(self, model: nn.Module) -> list[dict[str, object]]:
        """No weight decay on biases and norms."""
        return decay_groups(model)

    def flops(self, batch: Batch) -> float:
        """Of forward and backward on the padded batch."""
        rows, tokens = batch["input_ids"].shape
        return classifier_training_flops(
            self.decoder, batch=rows, tokens=tokens, classes=self.classes
        )

    def example_batch(self, samples: int) -> Batch:
        """The longest contexts, for estimates."""
        rows = torch.zeros((samples, self.max_tokens), dtype=torch.int64)
        return {
            "input_ids": rows,
            "attention_mask": torch.ones_like(rows, dtype=torch.bool),
            "labels": torch.zeros(samples, dtype=torch.int64),
        }

    def _classifier(self, decoder: Decoder) -> DecoderClassifier:
        head = torch.Generator().manual_seed(self.seed + HEAD_SEED)
        return DecoderClassifier(decoder, self.classes, head, pooling=cast(Pooling, self.pooling))

    def _loss(
        self, logits: torch.Tensor, batch: Batch, label_smoothing: float = 0.0
    ) -> torch.Tensor:
        # A template outside the label map has no class, so no loss.
        labels = batch["labels"].masked_fill(batch["labels"] < 0, IGNORED)
        return classification_loss(logits, labels, label_smoothing=label_smoothing).total


@dataclass(frozen=True)
class _Head:
    """The first samples of a stream."""

    stream: Stream
    limit: int

    @property
    def epoch_size(self) -> int:
        return min(self.limit, self.stream.epoch_size)

    @property
    def fingerprint(self) -> str:
        return f"{self.stream.fingerprint}:{self.epoch_size}"

    def samples(self, positions: Sequence[int]) -> list[Sample]:
        return self.stream.samples(positions)
