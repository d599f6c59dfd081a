"""A decoder with a linear head on one vector per sequence: discriminative fine-tuning.

Wyatte et al. 2024 (arXiv 2405.15765): the pretrained decoder loses its output embedding and gains
one matrix W of shape (classes, d) without bias, drawn from N(0, 0.02). The logits are
z = W LNf(h_last) at the right-most token that is not padding. Which tokens are padding is read from
the attention mask and never from the token ids, so a real token may equal the pad id.

Shapes: B batch, T tokens, d width, C classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from models.decoder import Decoder
from models.initialise import initialise, linear

Pooling = Literal["last", "mean"]


def last_token(hidden_BTd: torch.Tensor, attention_mask_BT: torch.Tensor | None) -> torch.Tensor:
    """The hidden state at the right-most real token of each row: [B, d]."""
    if attention_mask_BT is None:
        return hidden_BTd[:, -1]
    places_T = torch.arange(1, hidden_BTd.shape[1] + 1, device=hidden_BTd.device)
    last_B = (attention_mask_BT.bool() * places_T).argmax(dim=1)
    return hidden_BTd[torch.arange(len(hidden_BTd), device=hidden_BTd.device), last_B]


def token_mean(hidden_BTd: torch.Tensor, attention_mask_BT: torch.Tensor | None) -> torch.Tensor:
    """The mean hidden state over the real tokens of each row: [B, d]."""
    if attention_mask_BT is None:
        return hidden_BTd.mean(dim=1)
    weights_BT1 = attention_mask_BT.to(hidden_BTd.dtype)[..., None]
    return (hidden_BTd * weights_BT1).sum(dim=1) / weights_BT1.sum(dim=1)


POOLINGS = {"last": last_token, "mean": token_mean}


class DecoderClassifier(nn.Module):
    """Logits over classes from the pooled hidden state of a decoder.

    Args:
        decoder: The decoder to fine-tune, of a `DecoderLM` for example; it is used, not copied.
        classes: Number of classes.
        generator: Source of the initial weights of the head.
        pooling: `last`, the right-most real token, is the reference; `mean` averages real tokens.
    """

    def __init__(
        self,
        decoder: Decoder,
        classes: int,
        generator: torch.Generator,
        *,
        pooling: Pooling = "last",
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.pooling: Pooling = pooling
        self.head = linear(decoder.config.width, classes, bias=False)
        initialise(self.head, std=decoder.config.initial_std, generator=generator)

    def forward(
        self, input_ids_BT: torch.Tensor, *, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits [B, C]; every row must hold at least one real token."""
        hidden_BTd = self.decoder(input_ids_BT, attention_mask=attention_mask)
        logits_BC: torch.Tensor = self.head(POOLINGS[self.pooling](hidden_BTd, attention_mask))
        return logits_BC
