"""A language model together with a position plan: what generates and scores under a scheme.

The weights are those of the `DecoderLM` or `GauLM`; the plan is fixed, because cached keys stand
where it put them. It is a `CachedLM` like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from models import positions
from models.cache import CacheStep, LayerLayout
from models.decoder import DecoderLM
from models.decoder_config import DecoderConfig
from models.gau import GauLM
from models.planned_inputs import RotaryShape
from models.position_checks import require_fixed_interval, require_inference
from models.positions import PositionPlan, PositionScheme


@dataclass(frozen=True)
class PlannedLM:
    """`model` read under `plan`."""

    model: DecoderLM | GauLM
    plan: PositionPlan

    def cache_layouts(self) -> Sequence[LayerLayout]:
        """What each layer keeps."""
        return self.model.cache_layouts(self.plan)

    def cached(
        self, input_ids_N: torch.Tensor, step: CacheStep, rows_R: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Next-token logits [R, V] of the rows, of all N when None."""
        return self.model.cached(input_ids_N, step, rows_R, self.plan)

    def __call__(
        self, input_ids_BT: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits [B, T, V]."""
        logits = self.model(input_ids_BT, attention_mask=attention_mask, position_plan=self.plan)
        assert isinstance(logits, torch.Tensor)
        return logits


def plan_for(
    config: RotaryShape, scheme: PositionScheme, *, train_length: int, length: int
) -> PositionPlan:
    """The plan of a scheme for a model that was trained at `train_length`, to read `length`."""
    return positions.plan(
        scheme,
        train_length=train_length,
        length=length,
        rotary_width=config.rotary_width,
        rotary_base=config.rotary_base,
        yarn=config.yarn if isinstance(config, DecoderConfig) else None,
    )


def generating(
    model: DecoderLM | GauLM, scheme: PositionScheme, *, train_length: int, longest: int
) -> PlannedLM:
    """A model to generate with, up to `longest` tokens.

    Raises:
        ValueError: The scheme is one of training, or its k would follow the length.
    """
    require_inference(scheme)
    require_fixed_interval(scheme)
    return PlannedLM(
        model, plan_for(model.config, scheme, train_length=train_length, length=longest)
    )
