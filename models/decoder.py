"""One decoder-only transformer for GPT-NeoX, Llama and DeepSeek, with or without output embedding.

`Decoder` maps token ids to hidden states, `DecoderLM` adds the output embedding. Which of the
families, or what between them, is data: `DecoderConfig` names the attention of all blocks and the
feed-forward layer of each. Checkpoints in Hugging Face layout are translated by `models.hf_layout`;
losses are in `models.losses`.

    config = gpt_neox_config(vocab_size=2048, width=96, layers=3, heads=4)
    model = DecoderLM(config, torch.Generator().manual_seed(0))
    logits_BTV = model(input_ids_BT)

A model has parameters, and of experts the selection biases as buffers, all in its state dict; so
weights can be loaded without drawing any first:

    with torch.device("meta"):
        model = DecoderLM(config, torch.Generator())
    model.load_state_dict(weights, assign=True)

`cached` is the forward of generation, see `models.cache`.

Shapes: B batch, T tokens, d width, V vocabulary; in a cached step N new tokens, R wanted rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.attention import CausalSelfAttention
from models.attention_mask import additive_mask, derived_positions, row_segments
from models.balance import RoutingStatistics
from models.branch_cache import StepScheme, step_scheme
from models.cache import CacheStep, LayerCache, LayerLayout
from models.decoder_config import DecoderConfig
from models.feed_forward import FEED_FORWARDS
from models.initialise import embedding, initialise, linear
from models.key_value_attention import AttentionInputs
from models.latent_attention import LatentAttention
from models.linear_cross_entropy import linear_cross_entropy_sum
from models.losses import IGNORED
from models.mixture import MixtureOfExperts
from models.planned_inputs import planned_inputs, require_plan_fits
from models.positions import PositionPlan
from models.ragged import Group
from models.rms_norm import RMSNorm
from models.rotary import RotaryTables, rotary_tables
from models.window_attention import window_tiles

Shared = TypeVar("Shared")


class ObservedHidden(NamedTuple):
    """Hidden states, and how the tokens were routed on the way."""

    hidden: torch.Tensor
    routing: list[RoutingStatistics]
    """Of the layers with experts, in order."""


class ObservedLoss(NamedTuple):
    """The summed loss of the targets, and how the tokens were routed."""

    total: torch.Tensor
    routing: list[RoutingStatistics]


class StepInputs(NamedTuple):
    """What the attention of blocks of one kind shares in a step of generation."""

    rotary: RotaryTables
    scheme: StepScheme | None = None
    """None: plain rotary positions."""


class Decoder(nn.Module):
    """Token embedding, L blocks, final norm: token ids in, hidden states out.

    Args:
        config: The shape of the model.
        generator: Source of the initial weights; on the device where they are created.
        checkpoint_activations: Keep only the input of each block for the backward pass and compute
            the rest again: less memory for about a third more work. May be switched at any time.
    """

    def __init__(
        self,
        config: DecoderConfig,
        generator: torch.Generator,
        *,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = checkpoint_activations
        self.embedding = embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = build_norm(config)
        initialise(self, std=config.initial_std, generator=generator)

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
        position_plan: PositionPlan | None = None,
    ) -> torch.Tensor:
        """Hidden states [B, T, d] after the final norm.

        Args:
            input_ids_BT: Token ids.
            attention_mask: [B, T], true at real tokens; padding may be on either side.
            position_ids: [B, T] or [1, T]. Derived when absent: real tokens are counted from 0,
                anew in each document.
            document_ids: [B, T], one number per packed document, at least 0. A token sees only
                earlier tokens of its own document.
            position_plan: A scheme of `models.positions` in place of plain rotary positions.
        """
        x_BTd, shared = self._begin(
            input_ids_BT, attention_mask, position_ids, document_ids, position_plan
        )
        recompute = self.checkpoint_activations and torch.is_grad_enabled()
        for block, inputs in zip(self.blocks, shared, strict=True):
            if recompute:
                # There is no dropout, so there is no random state to put back.
                x_BTd = checkpoint(
                    block, x_BTd, inputs, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x_BTd = block(x_BTd, inputs)
        hidden_BTd: torch.Tensor = self.final_norm(x_BTd)
        return hidden_BTd

    def cached(
        self,
        input_ids_N: torch.Tensor,
        step: CacheStep,
        position_plan: PositionPlan | None = None,
    ) -> torch.Tensor:
        """Hidden states [N, d] of the new tokens of a step of generation.

        Raises:
            ValueError: The cache was written under another plan: its keys stand elsewhere.
        """
        x_Nd: torch.Tensor = self.embedding(input_ids_N)
        step.claim(position_plan)
        shared = self._begin_step(step, x_Nd.dtype, position_plan)
        for index, (block, inputs) in enumerate(zip(self.blocks, shared, strict=True)):
            assert isinstance(block, Block)
            layer = step.layer(index)
            x_Nd = block.cached(x_Nd, inputs.rotary, step.groups, layer, inputs.scheme)
        hidden_Nd: torch.Tensor = self.final_norm(x_Nd)
        return hidden_Nd

    def observed(
        self,
        input_ids_BT: torch.Tensor,
        *,
        position_ids: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
        sequence_ids: torch.Tensor | None = None,
    ) -> ObservedHidden:
        """The same for full rows, with the routing of every layer of experts.

        Args:
            input_ids_BT: Token ids; no padding.
            position_ids: As of `forward`.
            document_ids: As of `forward`.
            sequence_ids: [B], the sequences' own numbers, which say whose tokens are never dropped.
        """
        x_BTd, shared = self._begin(input_ids_BT, None, position_ids, document_ids)
        recompute = self.checkpoint_activations and torch.is_grad_enabled()
        routing = []
        for block, inputs in zip(self.blocks, shared, strict=True):
            assert isinstance(block, Block)
            if recompute:
                x_BTd, seen = checkpoint(
                    block.observed,
                    x_BTd,
                    inputs,
                    sequence_ids,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                x_BTd, seen = block.observed(x_BTd, inputs, sequence_ids)
            if seen is not None:
                routing.append(seen)
        return ObservedHidden(self.final_norm(x_BTd), routing)

    def _begin(
        self,
        input_ids_BT: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        document_ids: torch.Tensor | None,
        position_plan: PositionPlan | None = None,
    ) -> tuple[torch.Tensor, list[AttentionInputs]]:
        """The embedded tokens, and for each block what its attention shares with its like."""
        x_BTd: torch.Tensor = self.embedding(input_ids_BT)
        plain = None
        if position_plan is None or self.config.hybrid is not None:
            if position_ids is None:
                stands_BT = derived_positions(input_ids_BT, attention_mask, document_ids)
            else:
                stands_BT = position_ids
            plain = AttentionInputs(self._rotary(stands_BT, x_BTd.dtype), mask=None)
        if position_plan is None:
            assert plain is not None
            mask = additive_mask(attention_mask, document_ids, x_BTd.dtype)
            full = plain._replace(mask=mask)
        else:
            require_plan_fits(self.config, position_plan)
            full = planned_inputs(
                position_plan,
                input_ids_BT,
                attention_mask=attention_mask,
                position_ids=position_ids,
                document_ids=document_ids,
                dtype=x_BTd.dtype,
            )
        if self.config.hybrid is None:
            return x_BTd, [full] * self.config.layers
        assert plain is not None
        tiles = window_tiles(
            self.config.hybrid.sliding_window,
            input_ids_BT.shape[1],
            row_segments(input_ids_BT, attention_mask, document_ids),
            x_BTd,
        )
        return x_BTd, self._by_layer(full, plain._replace(tiles=tiles))

    def _begin_step(
        self, step: CacheStep, dtype: torch.dtype, position_plan: PositionPlan | None
    ) -> list[StepInputs]:
        """For each block what its attention shares with its like."""
        if position_plan is None:
            return [StepInputs(self._rotary(step.positions_N, dtype))] * self.config.layers
        require_plan_fits(self.config, position_plan)
        scheme = step_scheme(position_plan, step, dtype)
        full = StepInputs(scheme.branches[0].query, scheme)
        if self.config.hybrid is None:
            return [full] * self.config.layers
        return self._by_layer(full, StepInputs(self._rotary(step.positions_N, dtype)))

    def _by_layer(self, full: Shared, windowed: Shared) -> list[Shared]:
        windows = (self.config.window(layer) for layer in range(self.config.layers))
        return [full if window is None else windowed for window in windows]

    def _rotary(self, positions: torch.Tensor, dtype: torch.dtype) -> RotaryTables:
        return rotary_tables(
            positions,
            rotary_width=self.config.rotary_width,
            base=self.config.rotary_base,
            dtype=dtype,
            yarn=self.config.yarn,
        )


class Block(nn.Module):
    """Attention and feed-forward, each on a normalised input, added to the residual stream."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.parallel_residual = config.parallel_residual
        self.attention_norm = build_norm(config)
        self.attention = build_attention(config, layer)
        self.feed_forward_norm = build_norm(config)
        self.feed_forward = build_feed_forward(config, layer)

    def forward(self, x_BTd: torch.Tensor, inputs: AttentionInputs) -> torch.Tensor:
        attended_BTd = x_BTd + self.attention(self.attention_norm(x_BTd), inputs)
        source_BTd = x_BTd if self.parallel_residual else attended_BTd
        out_BTd: torch.Tensor = attended_BTd + self.feed_forward(self.feed_forward_norm(source_BTd))
        return out_BTd

    def observed(
        self, x_BTd: torch.Tensor, inputs: AttentionInputs, sequence_ids_B: torch.Tensor | None
    ) -> tuple[torch.Tensor, RoutingStatistics | None]:
        """The same, with the routing where the feed-forward is a mixture of experts."""
        if not isinstance(self.feed_forward, MixtureOfExperts):
            return self(x_BTd, inputs), None
        attended_BTd = x_BTd + self.attention(self.attention_norm(x_BTd), inputs)
        source_BTd = x_BTd if self.parallel_residual else attended_BTd
        out_BTd, seen = self.feed_forward.observed(
            self.feed_forward_norm(source_BTd), sequence_ids_B
        )
        return attended_BTd + out_BTd, seen

    def cached(
        self,
        x_Nd: torch.Tensor,
        rotary: RotaryTables,
        groups: Sequence[Group],
        cache: LayerCache,
        scheme: StepScheme | None = None,
    ) -> torch.Tensor:
        """The same for the new tokens of a step of generation."""
        normed_Nd = self.attention_norm(x_Nd)
        attended_Nd = x_Nd + self.attention.cached(normed_Nd, rotary, groups, cache, scheme)
        source_Nd = x_Nd if self.parallel_residual else attended_Nd
        out_Nd: torch.Tensor = attended_Nd + self.feed_forward(self.feed_forward_norm(source_Nd))
        return out_Nd


class DecoderLM(nn.Module):
    """A decoder with its output embedding: next-token logits, or the summed loss of targets."""

    def __init__(
        self,
        config: DecoderConfig,
        generator: torch.Generator,
        *,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.decoder = Decoder(config, generator, checkpoint_activations=checkpoint_activations)
        if not config.tied_embeddings:
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
        sequence_ids: torch.Tensor | None = None,
        observe: bool = False,
        position_plan: PositionPlan | None = None,
    ) -> torch.Tensor | ObservedLoss:
        """Logits [B, T, V], or with `targets_BT` the scalar sum of the cross entropies.

        `targets_BT` holds the token that each position must predict (`next_token_targets` makes
        it from labels) or -100. The loss is computed in here, not from returned logits, for two
        reasons: the logits of a whole batch never exist at once, and wrappers that gather sharded
        weights (ZeRO-3, FSDP) do so only inside `forward`. For the same reason `observe` asks here
        for the routing beside the loss, as `ObservedLoss`; it takes full rows, see
        `Decoder.observed`. `position_plan` is that of `Decoder.forward`.
        """
        routing: list[RoutingStatistics] = []
        if observe:
            hidden_BTd, routing = self.decoder.observed(
                input_ids_BT,
                position_ids=position_ids,
                document_ids=document_ids,
                sequence_ids=sequence_ids,
            )
        else:
            hidden_BTd = self.decoder(
                input_ids_BT,
                attention_mask=attention_mask,
                position_ids=position_ids,
                document_ids=document_ids,
                position_plan=position_plan,
            )
        weight_Vd = self.output_weight
        if targets_BT is None:
            return F.linear(hidden_BTd, weight_Vd)
        has_target_BT = targets_BT != IGNORED
        total = linear_cross_entropy_sum(
            hidden_BTd[has_target_BT], weight_Vd, targets_BT[has_target_BT]
        )
        return ObservedLoss(total, routing) if observe else total

    @property
    def output_weight(self) -> torch.Tensor:
        """The output embedding, [V, d]."""
        tied = self.config.tied_embeddings
        weight_Vd: torch.Tensor = (
            self.decoder.embedding.weight if tied else self.output_embedding.weight
        )
        return weight_Vd

    def cache_layouts(self, position_plan: PositionPlan | None = None) -> list[LayerLayout]:
        """What each layer keeps, see `models.cache`."""
        blocks = [block for block in self.decoder.blocks if isinstance(block, Block)]
        return [block.attention.cache_layout(position_plan) for block in blocks]

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


def build_norm(config: DecoderConfig) -> nn.LayerNorm | nn.RMSNorm:
    """The norm that `config` names."""
    if config.norm == "layer_norm":
        return nn.LayerNorm(config.width, eps=config.norm_epsilon)
    return RMSNorm(config.width, eps=config.norm_epsilon)


def build_attention(config: DecoderConfig, layer: int) -> CausalSelfAttention | LatentAttention:
    """The attention that `config` names for a block."""
    if config.latent is not None:
        return LatentAttention(config)
    return CausalSelfAttention(config, config.window(layer))


def build_feed_forward(config: DecoderConfig, layer: int) -> nn.Module:
    """The feed-forward layer that `config` names for a block."""
    if config.has_experts(layer):
        assert config.experts is not None
        return MixtureOfExperts(config, layer - config.experts.dense_layers)
    return FEED_FORWARDS[config.feed_forward](config)
