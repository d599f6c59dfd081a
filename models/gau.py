"""Gated attention units (Hua et al. 2022, arXiv 2202.10447) in the form of kexue.fm archive 9052.

One layer is attention and feed-forward at once:

    [u, v, z] = silu(x W),        u, v in R^e,  z in R^s
    q = gamma_q * z + beta_q,     k = gamma_k * z + beta_k,   both rotated
    A = softmax(q k^T / sqrt(s)), causal
    o = (u * (A v)) W_o
    x' = norm((2 L)^(1/4) x + o)

with the post-normalisation of DeepNorm (arXiv 2203.00555): the residual is scaled by (2 L)^(1/4),
and W and W_o are drawn smaller by (8 L)^(-1/4). The one head of queries and keys is cheap, so a
second branch of positions costs little. Details that the sources leave open are ours: an RMSNorm
with a gain, and no bias but beta.

Shapes: B batch, T tokens, d width, e = value width, s head width, V vocabulary; in a cached step N
new tokens, R rows whose logits are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from models.branch_cache import StepScheme, step_scheme
from models.cache import CacheStep, LayerCache, LayerLayout
from models.gau_config import GauConfig
from models.initialise import embedding, initialise, linear
from models.key_value_attention import AttentionInputs, KeyValueAttention
from models.linear_cross_entropy import linear_cross_entropy_sum
from models.losses import IGNORED
from models.planned_inputs import planned_inputs, require_plan_fits
from models.positions import PositionPlan, PositionScheme, plan
from models.ragged import Group
from models.rms_norm import RMSNorm
from models.rotary import RotaryTables, rotary_tables


class GatedAttentionUnit(nn.Module):
    """One layer; x in, x' out."""

    def __init__(self, config: GauConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.sizes = [config.value_width, config.value_width, config.head_width]
        # One head for queries and keys, of which every channel is rotated.
        self.inner = KeyValueAttention(
            1, 1, key_width=config.head_width, value_width=config.value_width
        )
        self.residual_scale = (2 * config.layers) ** 0.25
        self.gate_value_base = linear(config.width, sum(self.sizes), bias=False)
        # In one dimension, as all that is not decayed.
        self.scale = nn.Parameter(torch.ones(2 * config.head_width))
        """gamma_q and gamma_k."""
        self.offset = nn.Parameter(torch.zeros(2 * config.head_width))
        """beta_q and beta_k."""
        self.output = linear(config.value_width, config.width, bias=False)
        self.norm = RMSNorm(config.width, eps=1e-5)
        shrink = (8 * config.layers) ** -0.25
        for layer in (self.gate_value_base, self.output):
            initialise(layer, std=shrink * layer.in_features**-0.5, generator=generator)

    def forward(self, x_BTd: torch.Tensor, inputs: AttentionInputs) -> torch.Tensor:
        u_BTe, v_BT1e, qk_BT2s = self._projected(x_BTd)
        attended_BTe = self.inner.forward(qk_BT2s, v_BT1e, inputs)[:, 0]
        return self._joined(x_BTd, u_BTe, attended_BTe)

    def cached(
        self,
        x_Nd: torch.Tensor,
        rotary: RotaryTables,
        groups: Sequence[Group],
        cache: LayerCache,
        scheme: StepScheme | None = None,
    ) -> torch.Tensor:
        """The same for the new tokens of a step of generation, which are kept."""
        u_Ne, v_N1e, qk_N2s = self._projected(x_Nd)
        attended_N1e = self.inner.cached(qk_N2s, v_N1e, rotary, groups, cache, scheme)
        return self._joined(x_Nd, u_Ne, attended_N1e[:, 0])

    def _projected(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """u [..., e], v [..., 1, e], and q and k as two heads [..., 2, s]."""
        u, v, z = torch.split(F.silu(self.gate_value_base(x)), self.sizes, dim=-1)
        scale_2s, offset_2s = (both.view(2, -1) for both in (self.scale, self.offset))
        return u, v.unsqueeze(-2), z.unsqueeze(-2) * scale_2s + offset_2s

    def _joined(self, x: torch.Tensor, u: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(self.residual_scale * x + self.output(u * attended))
        return out


class GauDecoder(nn.Module):
    """Token embedding and L units: token ids in, hidden states out; called like a `Decoder`."""

    def __init__(self, config: GauConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.embedding = embedding(config.vocab_size, config.width)
        initialise(self.embedding, std=config.initial_std, generator=generator)
        self.units = nn.ModuleList(
            GatedAttentionUnit(config, generator) for _ in range(config.layers)
        )

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
        position_plan: PositionPlan | None = None,
    ) -> torch.Tensor:
        """Hidden states [B, T, d]; arguments as of `Decoder.forward`."""
        x_BTd: torch.Tensor = self.embedding(input_ids_BT)
        if position_plan is None:
            position_plan = self._plain_plan(input_ids_BT.shape[1])
        require_plan_fits(self.config, position_plan)
        inputs = planned_inputs(
            position_plan,
            input_ids_BT,
            attention_mask=attention_mask,
            position_ids=position_ids,
            document_ids=document_ids,
            dtype=x_BTd.dtype,
        )
        for unit in self.units:
            x_BTd = unit(x_BTd, inputs)
        return x_BTd

    def cached(
        self,
        input_ids_N: torch.Tensor,
        step: CacheStep,
        position_plan: PositionPlan | None = None,
    ) -> torch.Tensor:
        """Hidden states [N, d] of the new tokens of a step; see `Decoder.cached`."""
        x_Nd: torch.Tensor = self.embedding(input_ids_N)
        step.claim(position_plan)
        scheme = None
        if position_plan is None:
            rotary = rotary_tables(
                step.positions_N,
                rotary_width=self.config.rotary_width,
                base=self.config.rotary_base,
                dtype=x_Nd.dtype,
            )
        else:
            require_plan_fits(self.config, position_plan)
            scheme = step_scheme(position_plan, step, x_Nd.dtype)
            rotary = scheme.branches[0].query
        for index, unit in enumerate(self.units):
            assert isinstance(unit, GatedAttentionUnit)
            x_Nd = unit.cached(x_Nd, rotary, step.groups, step.layer(index), scheme)
        return x_Nd

    def _plain_plan(self, length: int) -> PositionPlan:
        return plan(
            PositionScheme("rope"),
            train_length=max(length, 2),
            length=length,
            rotary_width=self.config.rotary_width,
            rotary_base=self.config.rotary_base,
        )


class GauLM(nn.Module):
    """A `GauDecoder` with its output embedding; called like a `DecoderLM`."""

    def __init__(self, config: GauConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.decoder = GauDecoder(config, generator)
        self.output_embedding = linear(config.width, config.vocab_size, bias=False)
        initialise(self.output_embedding, std=config.initial_std, generator=generator)

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
        targets_BT: torch.Tensor | None = None,
        position_plan: PositionPlan | None = None,
    ) -> torch.Tensor:
        """Logits [B, T, V], or with `targets_BT` the scalar sum of the cross entropies."""
        hidden_BTd = self.decoder(
            input_ids_BT,
            attention_mask=attention_mask,
            position_ids=position_ids,
            document_ids=document_ids,
            position_plan=position_plan,
        )
        if targets_BT is None:
            return F.linear(hidden_BTd, self.output_weight)
        has_target_BT = targets_BT != IGNORED
        return linear_cross_entropy_sum(
            hidden_BTd[has_target_BT], self.output_weight, targets_BT[has_target_BT]
        )

    @property
    def output_weight(self) -> torch.Tensor:
        """The output embedding, [V, d]."""
        return self.output_embedding.weight

    def cache_layouts(self, position_plan: PositionPlan | None = None) -> list[LayerLayout]:
        """What each unit keeps, see `models.cache`."""
        units = [unit for unit in self.decoder.units if isinstance(unit, GatedAttentionUnit)]
        return [unit.inner.cache_layout(position_plan) for unit in units]

    def cached(
        self,
        input_ids_N: torch.Tensor,
        step: CacheStep,
        rows_R: Sequence[int] | None = None,
        position_plan: PositionPlan | None = None,
    ) -> torch.Tensor:
        """Logits [R, V] of rows of a step of generation, of all its N rows when None."""
        hidden_Nd = self.decoder.cached(input_ids_N, step, position_plan)
        wanted_Rd = hidden_Nd if rows_R is None else hidden_Nd[list(rows_R)]
        return F.linear(wanted_Rd, self.output_weight)
