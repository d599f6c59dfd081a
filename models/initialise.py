"""Linear layers and embeddings whose initial weights come from an explicit generator.

The scheme is that of the Hugging Face GPT-NeoX and Llama models: every matrix and embedding
N(0, 0.02), biases 0, norm gains 1. Pythia's own training code scaled by width and depth instead:
sqrt(2 / 5d) for most matrices ("small init") and 2 / (L sqrt(d)) for the two output matrices of a
block ("Wang init"). The plain scheme is chosen because it is the documented default of the format
that models are exchanged in and has one number, `DecoderConfig.initial_std`.
"""

from __future__ import annotations

import torch
from torch import nn

from models.experts import Experts


def linear(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    """A linear layer without torch's own initialisation, which would draw from the global state.

    It is empty until `initialise` or `load_state_dict` fills it.
    """
    layer = nn.Linear(inputs, outputs, bias=bias, device="meta")
    return layer.to_empty(device=torch.get_default_device())


def embedding(rows: int, width: int) -> nn.Embedding:
    """An embedding without torch's own initialisation; see `linear`."""
    return nn.Embedding(rows, width, device="meta").to_empty(device=torch.get_default_device())


@torch.no_grad()
def initialise(module: nn.Module, *, std: float, generator: torch.Generator) -> None:
    """Draw every weight of `module` in the order of its submodules.

    Weights on the meta device hold no numbers and take none.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            if not layer.weight.is_meta:
                layer.weight.normal_(0.0, std, generator=generator)
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, Experts):
            for matrices in (layer.gate_up, layer.down):
                if not matrices.is_meta:
                    matrices.normal_(0.0, std, generator=generator)
        elif isinstance(layer, nn.LayerNorm | nn.RMSNorm):
            layer.reset_parameters()
