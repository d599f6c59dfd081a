"""The shape of hybrid window-full attention (HWFA): all layers but a few see the last tokens only.

Source: Su, kexue.fm archives 9603 (HWFA) and 9731 (HWFA-ReRoPE). A windowed layer has plain rotary
positions and attends to the last v tokens, always. The full layers, evenly spread over the depth,
are rotary in training and take any scheme of `models.positions` when the model is read; so only
they see relative positions beyond the training length, and only their cost grows with the context.
Recommended are f of 1 or 2 and v of 2 to 4 times the training length over the depth. Holds no
torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HybridConfig:
    """Which layers of a decoder are windowed, and how far those see."""

    sliding_window: int
    """v: keys that a query of a windowed layer sees, itself included."""
    full_attention_layers: int
    """f: layers that see everything; 0 leaves none."""

    def __post_init__(self) -> None:
        if self.sliding_window < 1:
            raise ValueError(f"sliding_window must be at least 1, got {self.sliding_window}.")
        if self.full_attention_layers < 0:
            raise ValueError(
                f"full_attention_layers must be at least 0, got {self.full_attention_layers}."
            )

    def full_layers(self, depth: int) -> tuple[int, ...]:
        """The layers of full attention, counted from 0: round(depth q / (f + 1)), q = 1 .. f.

        Halves are rounded to even numbers. Below f = depth the layers all differ, and the first
        one is never among them.
        """
        parts = self.full_attention_layers + 1
        return tuple(round(depth * q / parts) for q in range(1, parts))
