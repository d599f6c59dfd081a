"""What gradient descent trains here: a decoder with experts, kept balanced by losses or by a bias.

The loss is the mean next-token cross entropy plus, for every layer of experts, the balance losses
as means over sequences; each is a term of its own and is recorded on its own. The loads of all
experts are observed, summed over the global batch by the platform, and move the selection bias
after the optimiser step (`after_update`). What the loads were is recorded with the steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import nn

from heliostat.data.stream import PackedStream, Sample, Stream
from heliostat.storage import Location
from heliostat.train.engine import decay_groups
from heliostat.train.task import Batch, LossTerm, Observed, Steering, Tally
from jobs.corpora.windows import WindowStream
from jobs.mla_moe.config import BalanceConfig
from jobs.mla_moe.data import HeldOutRows
from jobs.mla_moe.steering import Steerer
from models.balance import balance_losses
from models.counting import active_count, head_widths
from models.decoder import DecoderLM, ObservedLoss
from models.decoder_config import DecoderConfig
from models.losses import IGNORED, next_token_targets

LOAD = "load"
DROPPED = "dropped"
LOGITS = "logits"


@dataclass(frozen=True)
class MixtureLanguageModel:
    """Next-token prediction with a mixture of experts."""

    name: str
    decoder: DecoderConfig
    balance: BalanceConfig
    train: Location
    test: Location
    length: int
    seed: int
    validation_rows: int = 256
    targets: str | None = None
    """Column that says which tokens are learnt; None: all."""
    end_of_text: int = 0
    """Token between documents."""

    def model(self) -> nn.Module:
        """Random initial weights."""
        return DecoderLM(self.decoder, torch.Generator().manual_seed(self.seed))

    def meta_model(self) -> nn.Module:
        """The model without numbers, for estimates."""
        with torch.device("meta"):
            return DecoderLM(self.decoder, torch.Generator(device="cpu"))

    def train_data(self) -> Stream:
        """Windows drawn anew in every epoch, or documents packed anew where some are targets."""
        if self.targets is None:
            return WindowStream(self.train, self.length, self.seed)
        return PackedStream(
            self.train, self.length, self.seed, self.end_of_text, pad=None, targets=self.targets
        )

    def eval_data(self) -> Stream:
        """The validation rows of the test side, the same ones whatever the seed."""
        return self.held_out(is_validation=True)

    def held_out(self, *, is_validation: bool, limit: int | None = None) -> HeldOutRows:
        """The validation rows of the test side, or the others."""
        return HeldOutRows(
            self.test,
            self.length,
            self.validation_rows,
            is_validation=is_validation,
            limit=limit,
            targets=self.targets,
            end_of_text=self.end_of_text,
        )

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack rows."""
        rows = np.stack([cast(np.ndarray, sample["input_ids"]) for sample in samples])
        ids = [cast(int, sample["id"]) for sample in samples]
        batch = {
            "input_ids": torch.from_numpy(rows.astype(np.int64)),
            "sequence_ids": torch.tensor(ids, dtype=torch.int64),
        }
        if self.targets is not None:
            for name in ("labels", "document_ids"):
                column = np.stack([cast(np.ndarray, sample[name]) for sample in samples])
                batch[name] = torch.from_numpy(column.astype(np.int64))
            # What fills up the last row is a document of its own, of which nothing is learnt.
            filler = batch["document_ids"] < 0
            batch["document_ids"][filler] = self.length
        return batch

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """Target tokens (never the first of a row) and sequences."""
        wanted = _targets(batch) != IGNORED
        return {"tokens": int(wanted.sum()), "sequences": len(wanted)}

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm | Observed]:
        """Cross entropy, the balance losses that have a factor, and what was observed."""
        out = self._observed(model, batch)
        terms: dict[str, LossTerm | Observed] = {"lm": LossTerm(out.total, "tokens")}
        if not out.routing:
            return terms
        assert self.decoder.experts is not None
        layers = [balance_losses(seen, self.decoder.experts) for seen in out.routing]
        factors = {
            "expert": self.balance.alpha_expert,
            "device": self.balance.alpha_device,
            "communication": self.balance.alpha_communication,
        }
        for name, factor in factors.items():
            if factor:
                total = torch.stack([getattr(losses, name) for losses in layers]).sum()
                terms[f"balance_{name}"] = LossTerm(factor * total, "sequences")
        terms[LOAD] = Observed(torch.stack([seen.load.sum(0) for seen in out.routing]))
        terms[DROPPED] = Observed(torch.stack([seen.dropped for seen in out.routing]))
        terms[LOGITS] = Observed(torch.stack([seen.logits for seen in out.routing]))
        return terms

    def faults(self, observed: Mapping[str, torch.Tensor]) -> Sequence[str]:
        """The first router whose logits are not finite; those after it only follow."""
        bad = (~observed[LOGITS].isfinite()).nonzero().flatten().tolist()
        return [f"the router of layer of experts {bad[0]} gave no finite logits"] if bad else []

    def after_update(
        self, model: nn.Module, observed: Mapping[str, torch.Tensor], step: int, steps: int
    ) -> Steering:
        """Move the selection biases by the loads of the global batch."""
        assert self.decoder.experts is not None
        steerer = Steerer(self.decoder.experts, self.balance, steps)
        return steerer.after_update(model, observed[LOAD], observed[DROPPED], step)

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tally]:
        """Mean cross entropy, nats a token."""
        total: torch.Tensor = model(
            batch["input_ids"],
            targets_BT=_targets(batch),
            document_ids=batch.get("document_ids"),
        )
        return {"loss": Tally(total, self.counts(batch)["tokens"])}

    def measured(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """What evaluation needs of each row, [B, 2 + l N + l D + l].

        The summed cross entropy of the batch and the number of its targets stand in its first row.
        Then come, by layer of experts, how many tokens of the row went to each expert and to each
        group, and how many groups any one of them went to at most.
        """
        out = self._observed(model, batch)
        totals = torch.zeros(len(batch["input_ids"]), 2)
        totals[0, 0] = out.total.float()
        totals[0, 1] = self.counts(batch)["tokens"]
        loads = [seen.load for seen in out.routing]
        sent = [seen.sent for seen in out.routing]
        most = [seen.most_groups[:, None] for seen in out.routing]
        return torch.cat([totals, *loads, *sent, *most], dim=1)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, object]]:
        """No weight decay on norms; the selection bias is no parameter."""
        return decay_groups(model)

    def flops(self, batch: Batch) -> float:
        """6 N T + 3 l h T^2 (d_n + d_R + d_v) a row, N the parameters that a token meets.

        Attention is counted as causal, and the input embedding not at all.
        """
        rows, tokens = batch["input_ids"].shape
        config = self.decoder
        weights = active_count(config) + config.vocab_size * config.width
        attention = 3 * config.layers * config.heads * tokens * sum(head_widths(config))
        return float(rows * tokens * (6 * weights + attention))

    def example_batch(self, samples: int) -> Batch:
        """Full rows, for estimates."""
        return {
            "input_ids": torch.zeros((samples, self.length), dtype=torch.int64),
            "sequence_ids": torch.zeros(samples, dtype=torch.int64),
        }

    def _observed(self, model: nn.Module, batch: Batch) -> ObservedLoss:
        out = model(
            batch["input_ids"],
            targets_BT=_targets(batch),
            document_ids=batch.get("document_ids"),
            sequence_ids=batch["sequence_ids"],
            observe=True,
        )
        assert isinstance(out, ObservedLoss)
        return out


def _targets(batch: Batch) -> torch.Tensor:
    """What each position must predict, [B, T]."""
    return next_token_targets(batch.get("labels", batch["input_ids"]))
