"""The encoder baseline: BERT (Devlin et al. 2019, arXiv 1810.04805) of a given size.

Thin modules around transformers' implementation with the interfaces of `DecoderLM` and
`DecoderClassifier`: the summed loss of the masked tokens, and logits from one pooled vector. The
masking is that of the paper: 15 % of the tokens are targets, of which 80 % become the mask token,
10 % a random token and 10 % stay. Positions are absolute, so padding belongs on the right.

Shapes: B batch, T tokens, d width, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from models.classifier import token_mean
from models.initialise import initialise, linear
from models.losses import IGNORED, SummedLoss

EncoderPooling = Literal["cls", "mean"]


@dataclass(frozen=True)
class EncoderConfig:
    """The size of a BERT."""

    vocab_size: int
    """Rows of the token embedding, the mask token included."""
    width: int
    """Width of the residual stream."""
    layers: int
    """Number of blocks."""
    heads: int
    """Attention heads."""
    max_positions: int = 512
    """Longest sequence; the positions are learnt, so this is a hard limit."""
    dropout: float = 0.1
    """Dropout of hidden states and attention, drawn from the global random state."""
    initial_std: float = 0.02
    """Standard deviation of the initial weights."""


class MaskedTokens(NamedTuple):
    """A batch for masked-language-model training."""

    input_ids: torch.Tensor
    """[B, T]: token ids after masking."""
    targets: torch.Tensor
    """[B, T]: the original token where it must be predicted, -100 elsewhere."""


def mask_tokens(
    input_ids_BT: torch.Tensor,
    maskable_BT: torch.Tensor,
    *,
    mask_id: int,
    vocab_size: int,
    generator: torch.Generator,
    rate: float = 0.15,
) -> MaskedTokens:
    """Choose each maskable token with probability `rate`; mask 80 %, replace 10 %, keep 10 %.

    Args:
        input_ids_BT: Token ids, on the device of the generator.
        maskable_BT: True at tokens that may be chosen: no padding, no special tokens.
        mask_id: The mask token.
        vocab_size: Replacements are drawn from the ids below it.
        generator: The only source of randomness.
        rate: Probability of being chosen.
    """
    device = input_ids_BT.device
    chosen_BT = torch.rand(input_ids_BT.shape, generator=generator, device=device) < rate
    chosen_BT &= maskable_BT.bool()
    action_BT = torch.rand(input_ids_BT.shape, generator=generator, device=device)
    random_BT = torch.randint(vocab_size, input_ids_BT.shape, generator=generator, device=device)
    masked_BT = torch.where(chosen_BT & (action_BT < 0.8), mask_id, input_ids_BT)
    masked_BT = torch.where(chosen_BT & (action_BT >= 0.9), random_BT, masked_BT)
    return MaskedTokens(masked_BT, torch.where(chosen_BT, input_ids_BT, IGNORED))


def masked_token_loss(
    model: nn.Module, masked: MaskedTokens, *, attention_mask: torch.Tensor | None = None
) -> SummedLoss:
    """The masked-token loss of an `EncoderLM` or of a wrapper (DeepSpeed, DDP) around one."""
    total = model(masked.input_ids, attention_mask=attention_mask, targets_BT=masked.targets)
    return SummedLoss(total, (masked.targets != IGNORED).sum())


class EncoderLM(nn.Module):
    """BERT with its masked-language-model head."""

    def __init__(self, config: EncoderConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        # transformers draws initial weights from the global state, which must stay as it was.
        with torch.random.fork_rng(devices=[]):
            self.bert = BertForMaskedLM(_bert_config(config))
        initialise(self, std=config.initial_std, generator=generator)

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        targets_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [B, T, V], or with `targets_BT` the scalar sum of the cross entropies."""
        hidden_BTd = self.hidden_states(input_ids_BT, attention_mask)
        if targets_BT is None:
            logits_BTV: torch.Tensor = self.bert.cls(hidden_BTd)
            return logits_BTV
        has_target_BT = targets_BT != IGNORED
        logits_NV = self.bert.cls(hidden_BTd[has_target_BT])
        return F.cross_entropy(logits_NV.float(), targets_BT[has_target_BT], reduction="sum")

    def hidden_states(
        self, input_ids_BT: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The last hidden states, before the head: [B, T, d]."""
        output = self.bert.bert(input_ids_BT, attention_mask=attention_mask)
        hidden_BTd: torch.Tensor = output.last_hidden_state
        return hidden_BTd


class EncoderClassifier(nn.Module):
    """Logits over classes from the pooled hidden states of an encoder.

    Args:
        encoder: The encoder to fine-tune; it is used, not copied, and its own head rests.
        classes: Number of classes.
        generator: Source of the initial weights of the head.
        pooling: `mean` over real tokens, or `cls`, the first token.
    """

    def __init__(
        self,
        encoder: EncoderLM,
        classes: int,
        generator: torch.Generator,
        *,
        pooling: EncoderPooling = "mean",
    ) -> None:
        super().__init__()
        self.encoder = encoder.bert.bert
        self.pooling: EncoderPooling = pooling
        self.head = linear(encoder.config.width, classes, bias=False)
        initialise(self.head, std=encoder.config.initial_std, generator=generator)

    def forward(
        self, input_ids_BT: torch.Tensor, *, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits [B, C]."""
        hidden_BTd = self.encoder(input_ids_BT, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            pooled_Bd = hidden_BTd[:, 0]
        else:
            pooled_Bd = token_mean(hidden_BTd, attention_mask)
        logits_BC: torch.Tensor = self.head(pooled_Bd)
        return logits_BC


def _bert_config(config: EncoderConfig) -> BertConfig:
    return BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
        max_position_embeddings=config.max_positions,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        # No row of the embedding is frozen at zero: padding is known from the attention mask.
        pad_token_id=None,
    )
