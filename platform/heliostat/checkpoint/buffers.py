"""The buffers of a model in a file of their own, so that any number of workers can restore them.

DeepSpeed 0.19.8 keeps them in its model states, but when it loads the universal format it restores
parameters and optimiser states only, and buffers that follow the data (`Steered`) would start
again. Buffers are the same on every rank; rank 0 saves them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

BUFFERS_NAME = "buffers.pt"


def persistent_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the buffers that belong to the state dict, on the CPU."""
    belongs = model.state_dict().keys()
    return {
        name: buffer.detach().to("cpu", copy=True)
        for name, buffer in model.named_buffers()
        if name in belongs
    }


def restore_buffers(model: nn.Module, path: Path) -> None:
    """Put back what `persistent_buffers` copied."""
    saved = torch.load(path, weights_only=True)
    for name, buffer in model.named_buffers():
        if name in saved:
            buffer.copy_(saved[name])
