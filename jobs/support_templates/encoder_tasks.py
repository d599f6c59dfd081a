"""The two trainings of the encoder baseline: predicting masked tokens, then the template.

BERT (Devlin et al. 2019, arXiv 1810.04805), the baseline of Wyatte et al. (arXiv 2405.15765, table
3). Each task wraps the decoder's task on the same data: rows, contexts, batches and metrics are
those of the decoder, and only the model and what it learns from a row differ. Not here: BERT's
next-sentence objective, which transcripts have no use for, and its [CLS] token, in whose place the
mean over real tokens is classified.

Our tokenizers have no mask token, so the embedding has one row more than the vocabulary, and that
row is the mask. What is masked in a row depends on the seed, the epoch and the row alone: neither
the batch that it is in, nor the number of workers, nor a resumed run changes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import cast

import numpy as np
import torch
from torch import nn

from heliostat.data.stream import Sample, Stream
from heliostat.storage import Location
from heliostat.train.engine import decay_groups
from heliostat.train.task import Batch, LossTerm, Tally
from heliostat.train.weights import load_weights
from jobs.support_templates.tasks import HEAD_SEED, LanguageModelling, TemplateClassification
from models.encoder import EncoderClassifier, EncoderConfig, EncoderLM, mask_tokens
from models.losses import IGNORED


@dataclass(frozen=True)
class MaskedRows:
    """Packed rows with some tokens masked, anew in every epoch (Liu et al., arXiv 1907.11692).

    A sample has `id`, `input_ids` after masking, `labels` (the original token at those that must
    be predicted, -100 elsewhere) and `attention_mask`.
    """

    rows: Stream
    """A `PackedStream`, or its first rows."""
    mask_id: int
    """The mask token; replacements are drawn from the ids below it."""
    end_of_text: int
    """Separates documents and is never masked."""
    seed: int
    rate: float

    @property
    def epoch_size(self) -> int:
        """Rows in one epoch."""
        return self.rows.epoch_size

    @property
    def fingerprint(self) -> str:
        """Stands for the rows and for what is masked in them."""
        return f"{self.rows.fingerprint}:masked-{self.mask_id}-{self.rate}-{self.seed}"

    def samples(self, positions: Sequence[int]) -> list[Sample]:
        """The masked rows at these positions."""
        return [
            self._masked(row, position // self.epoch_size)
            for row, position in zip(self.rows.samples(positions), positions, strict=True)
        ]

    def _masked(self, row: Sample, epoch: int) -> Sample:
        input_ids = torch.from_numpy(cast(np.ndarray, row["input_ids"]))
        attention_mask = torch.from_numpy(cast(np.ndarray, row["document_ids"])) >= 0
        masked = mask_tokens(
            input_ids,
            attention_mask & (input_ids != self.end_of_text),
            mask_id=self.mask_id,
            vocab_size=self.mask_id,
            generator=self._generator(epoch, row["id"]),
            rate=self.rate,
        )
        return {
            "id": row["id"],
            "input_ids": masked.input_ids,
            "labels": masked.targets,
            "attention_mask": attention_mask,
        }

    def _generator(self, epoch: int, row: object) -> torch.Generator:
        digest = blake2b(f"{self.seed}/{epoch}/{row}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@dataclass(frozen=True)
class MaskedLanguageModelling:
    """Predicting masked tokens of packed documents (stages 0 and 1 of the encoder)."""

    name: str
    encoder: EncoderConfig
    decoder_task: LanguageModelling
    """Next-token training on the same rows; its data are used. The encoder always attends across
    the documents of a row."""
    masking_rate: float

    @property
    def mask_id(self) -> int:
        """The extra row of the embedding."""
        return self.encoder.vocab_size - 1

    def model(self) -> nn.Module:
        """Random initial weights; a checkpoint's come in through `fit(start_from=...)`."""
        return EncoderLM(self.encoder, torch.Generator().manual_seed(self.decoder_task.seed))

    def train_data(self) -> Stream:
        """Rows packed and masked anew for every epoch."""
        return self._masked(self.decoder_task.train_data())

    def eval_data(self) -> Stream:
        """The first rows of the held-out documents, masked in the same way every time."""
        return self._masked(self.decoder_task.eval_data())

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack rows."""
        names = ("input_ids", "labels", "attention_mask")
        return {
            name: torch.stack([cast(torch.Tensor, sample[name]) for sample in samples])
            for name in names
        }

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """Tokens that must be predicted."""
        return {"masked_tokens": int((batch["labels"] != IGNORED).sum())}

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        """Cross entropy summed over masked tokens."""
        return {"mlm": LossTerm(self._sum(model, batch), "masked_tokens")}

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tally]:
        """Mean cross entropy, nats a masked token."""
        return {"loss": Tally(self._sum(model, batch), self.counts(batch)["masked_tokens"])}

    def parameter_groups(self, model: nn.Module) -> list[dict[str, object]]:
        """No weight decay on biases and norms."""
        return decay_groups(model)

    def flops(self, batch: Batch) -> float:
        """Of forward and backward; only masked tokens reach the output embedding."""
        width, targets = self.encoder.width, self.counts(batch)["masked_tokens"]
        head = 6 * targets * width * (width + self.encoder.vocab_size)
        return encoder_training_flops(self.encoder, batch) + head

    def _masked(self, rows: Stream) -> MaskedRows:
        task = self.decoder_task
        return MaskedRows(rows, self.mask_id, task.end_of_text, task.seed, self.masking_rate)

    def _sum(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        total: torch.Tensor = model(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            targets_BT=batch["labels"],
        )
        return total


@dataclass(frozen=True)
class EncoderClassification:
    """Which template answers this conversation, by an encoder (stage 2)."""

    name: str
    encoder: EncoderConfig
    pretrained: Location
    """Weights of masked-language-model training to start from."""
    decoder_task: TemplateClassification
    """The decoder's task on the same contexts; its data, batches, loss and metrics are used."""

    def model(self) -> nn.Module:
        """The pretrained encoder without its masked-token head, and a fresh head."""
        seed = self.decoder_task.seed
        encoder = EncoderLM(self.encoder, torch.Generator().manual_seed(seed))
        load_weights(encoder, self.pretrained)
        head = torch.Generator().manual_seed(seed + HEAD_SEED)
        return EncoderClassifier(encoder, self.decoder_task.classes, head, pooling="mean")

    def train_data(self) -> Stream:
        """Labelled contexts, in the order in which the decoder sees them."""
        return self.decoder_task.train_data()

    def eval_data(self) -> Stream:
        """The labelled contexts of the validation side."""
        return self.decoder_task.eval_data()

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Pad on the right to the longest context."""
        return self.decoder_task.collate(samples)

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """Contexts whose template is in the label map."""
        return self.decoder_task.counts(batch)

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        """Cross entropy summed over contexts."""
        return self.decoder_task.loss(model, batch)

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tally]:
        """Loss over labels in the map; accuracies over all rows, a label outside it is a miss."""
        return self.decoder_task.evaluate(model, batch)

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Scores over the label map: [B, C]."""
        return self.decoder_task.logits(model, batch)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, object]]:
        """No weight decay on biases and norms."""
        return decay_groups(model)

    def flops(self, batch: Batch) -> float:
        """Of forward and backward on the padded batch."""
        head = 6 * len(batch["input_ids"]) * self.decoder_task.classes * self.encoder.width
        return encoder_training_flops(self.encoder, batch) + head


def encoder_training_flops(config: EncoderConfig, batch: Batch) -> float:
    """FLOPs of one forward and backward pass through the blocks, as torch's counter sees them.

    A block has 12 d^2 matrix parameters, each worth 6 FLOPs a token; its two attention products
    take 2 T^2 d each, once forward and twice backward.
    """
    rows, tokens = batch["input_ids"].shape
    matrices = 6 * rows * tokens * config.layers * 12 * config.width**2
    attention = 12 * rows * config.layers * tokens**2 * config.width
    return float(matrices + attention)
