"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    c^Q = RMSNorm(W_DQ h)          [q^C; q^R'] by head = W_UQ c^Q   (or W_Q h, without c^Q)
    [c'; k^R'] = W_DKV h           c = RMSNorm(c')
    [k^C; v] by head = W_UKV c     q^R = RoPE(q^R'),  k^R = RoPE(k^R'), one key for all heads
    s = a (q^C . k^C + q^R . k^R)  a = 1 / sqrt(d_n + d_R), with YaRN times its factor (ii)

A layer caches c and k^R of a token and nothing else: `entries` makes them and `attend` reads them,
by whichever of the two paths in `models.latent_paths` is cheaper. Training has no context before
its own tokens and always expands.

Under a position scheme only the rotary part changes. With several branches the keys are rotated by
each of them (`models.branch_attention`), and generation keeps [k^R; c] with the far rotation of k^R
(none for ReRoPE) and a ring of k^R with the near one; it attends in absorbed form.

Our weights keep the rotated rows of a query head before the others, with pairs in half-split order;
`models.hf_layout` translates checkpoints, which keep them behind and interleaved.

Shapes: B batch, T tokens, S context, d width, H heads, D = d_R + d_n, V = d_v, c = d_c, e = d_c +
d_R; in a cached step N new tokens of all sequences, S sequences of a group, M new tokens of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from models import latent_paths
from models.branch_attention import BranchInputs, branch_attention
from models.branch_cache import StepScheme, branch_layout, cached_branch_attention
from models.cache import Kept, LayerCache, LayerLayout
from models.decoder_config import DecoderConfig
from models.initialise import linear
from models.key_value_attention import AttentionInputs
from models.latent_config import NORM_EPSILON
from models.latent_paths import LatentWidths, is_absorbed_cheaper
from models.partial_attention import pad_to_width
from models.positions import PositionPlan, has_branches
from models.ragged import Group
from models.rms_norm import RMSNorm
from models.rotary import RotaryTables, rotate

LATENT_KEY = "latent_key"


class LatentAttention(nn.Module):
    """Attention whose cache is one narrow latent and one rotary key a token."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        latent = config.latent
        assert latent is not None
        self.widths = LatentWidths(
            heads=config.heads,
            nope=config.head_width,
            rotary=latent.rotary_width,
            value=latent.value_width,
            latent=latent.width,
        )
        head = config.head_width + latent.rotary_width
        self.logit_factor = config.yarn.logit_factor if config.yarn is not None else 1.0
        self.scale = head**-0.5 * self.logit_factor
        self.workspace = latent_paths.WORKSPACE
        """Bound on what a path holds at a time, in numbers; may be changed at any time."""
        source = config.width
        if latent.query_width:
            self.query_down = linear(config.width, latent.query_width, bias=False)
            self.query_norm = RMSNorm(latent.query_width, eps=NORM_EPSILON)
            source = latent.query_width
        self.query = linear(source, config.heads * head, bias=False)
        self.latent_down = linear(config.width, latent.cached_width, bias=False)
        self.latent_norm = RMSNorm(latent.width, eps=NORM_EPSILON)
        pair = config.head_width + latent.value_width
        self.key_value_up = linear(latent.width, config.heads * pair, bias=False)
        self.output = linear(config.heads * latent.value_width, config.width, bias=False)
        self.has_query_latent = bool(latent.query_width)

    def forward(self, x_BTd: torch.Tensor, inputs: AttentionInputs) -> torch.Tensor:
        """Tokens attend to themselves and those before them in `x_BTd`."""
        if inputs.branches is not None:
            return self._branched(x_BTd, inputs.branches)
        c_BTc, rotary_key_BTR = self.latents(x_BTd, inputs.rotary)
        k_BTHD, v_BTHV = latent_paths.expand(
            c_BTc, rotary_key_BTR, self.up_weight(), self.widths.nope
        )
        q_BTHD = self.queries(x_BTd, inputs.rotary)
        if inputs.query_factor is not None:
            q_BTHD = q_BTHD * inputs.query_factor
        out_BTHV = latent_paths.causal_expanded(
            q_BTHD, k_BTHD, v_BTHV, scale=self.scale, mask=inputs.mask
        )
        return self.project(out_BTHV)

    def _branched(self, x_BTd: torch.Tensor, branches: BranchInputs) -> torch.Tensor:
        c_BTc, raw_key_BTR = self.raw_latents(x_BTd)
        k_BTHD, v_BTHV = latent_paths.expand(c_BTc, raw_key_BTR, self.up_weight(), self.widths.nope)
        # Equal widths get the fused kernel.
        padded_BTHD = pad_to_width(v_BTHV, k_BTHD.shape[-1])
        q_BTHD = self.raw_queries(x_BTd)
        # That attention divides by the root of the width alone.
        if self.logit_factor != 1.0:
            q_BTHD = q_BTHD * self.logit_factor
        out_BHTD = branch_attention(q_BTHD, k_BTHD, padded_BTHD, branches)
        return self.project(out_BHTD[..., : self.widths.value].transpose(1, 2))

    def raw_queries(self, x_BTd: torch.Tensor) -> torch.Tensor:
        """[q^R'; q^C] of every head, not rotated: [B, T, H, D]."""
        source = self.query_norm(self.query_down(x_BTd)) if self.has_query_latent else x_BTd
        return torch.unflatten(self.query(source), -1, (self.widths.heads, -1))

    def queries(self, x_BTd: torch.Tensor, rotary: RotaryTables) -> torch.Tensor:
        """[q^R; q^C] of every head: [B, T, H, D]."""
        return rotate(self.raw_queries(x_BTd), rotary)

    def raw_latents(self, x_BTd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """c [B, T, c] and k^R' [B, T, R], not rotated."""
        raw_BTc, key_BTR = torch.split(
            self.latent_down(x_BTd), [self.widths.latent, self.widths.rotary], dim=-1
        )
        return self.latent_norm(raw_BTc), key_BTR

    def latents(
        self, x_BTd: torch.Tensor, rotary: RotaryTables
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """c [B, T, c] and k^R [B, T, R]."""
        c_BTc, key_BTR = self.raw_latents(x_BTd)
        return c_BTc, rotate(key_BTR.unsqueeze(-2), rotary).squeeze(-2)

    def entries(self, x_BTd: torch.Tensor, rotary: RotaryTables) -> torch.Tensor:
        """What is cached of each token, [c; k^R]: [B, T, e]."""
        return torch.cat(self.latents(x_BTd, rotary), dim=-1)

    def attend(
        self, q_BTHD: torch.Tensor, entries_BSe: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Output [B, T, d] of the last T tokens of a cached context, by the cheaper path.

        Args:
            q_BTHD: From `queries`.
            entries_BSe: From `entries`, the tokens of `q_BTHD` at the end.
            mask: Additive, [B, 1, T, S]; None for plain causal attention.
        """
        cheaper = is_absorbed_cheaper(self.widths, q_BTHD.shape[1], entries_BSe.shape[1])
        path = latent_paths.absorbed if cheaper else latent_paths.expanded
        return self.project(
            path(
                q_BTHD,
                entries_BSe,
                self.up_weight(),
                nope=self.widths.nope,
                scale=self.scale,
                mask=mask,
                workspace=self.workspace,
            )
        )

    def cache_layout(self, position_plan: PositionPlan | None = None) -> LayerLayout:
        """[c; k^R] of every token; or what a scheme of several branches keeps."""
        width = self.widths.latent + self.widths.rotary
        if position_plan is not None and has_branches(position_plan):
            return branch_layout(position_plan, width, 0, self.widths.latent)
        return LayerLayout((Kept(LATENT_KEY, width),))

    def cached(
        self,
        x_Nd: torch.Tensor,
        rotary: RotaryTables,
        groups: Sequence[Group],
        cache: LayerCache,
        scheme: StepScheme | None = None,
    ) -> torch.Tensor:
        """The output for the new tokens of a step of generation, which are kept."""
        if scheme is not None and has_branches(scheme.plan):
            return self._cached_branched(x_Nd, scheme, groups, cache)
        cache.write(LATENT_KEY, self.entries(x_Nd, rotary))
        q_NHD = self.queries(x_Nd, rotary)
        if scheme is not None and scheme.query_factor is not None:
            q_NHD = q_NHD * scheme.query_factor
        attended = []
        for group in groups:
            q_SMHD = torch.unflatten(q_NHD[group.rows], 0, (group.size, group.new))
            # Equally long sequences need no mask: the new tokens are the last of all columns.
            is_ragged = min(group.past) < max(group.past)
            mask = group.mask(q_NHD.dtype) if is_ragged else None
            out_SMd = self.attend(q_SMHD, cache.read(LATENT_KEY, group), mask)
            attended.append(out_SMd.flatten(0, 1))
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    def _cached_branched(
        self, x_Nd: torch.Tensor, scheme: StepScheme, groups: Sequence[Group], cache: LayerCache
    ) -> torch.Tensor:
        nope, latent = self.widths.nope, self.widths.latent
        c_Nc, raw_key_NR = self.raw_latents(x_Nd)
        q_NHD = self.raw_queries(x_Nd)
        rotary_NHR, nope_NHN = torch.split(q_NHD, [q_NHD.shape[-1] - nope, nope], dim=-1)
        up_HPc = self.up_weight()
        key_HNc, value_HVc = torch.split(up_HPc, [nope, up_HPc.shape[1] - nope], dim=1)
        q_NHe = torch.cat((rotary_NHR, torch.einsum("nhk,hkc->nhc", nope_NHN, key_HNc)), dim=-1)
        # Attention divides by the root of this wider query's width.
        q_NHe = q_NHe * (self.scale * q_NHe.shape[-1] ** 0.5)
        entries_N1e = torch.cat((raw_key_NR, c_Nc), dim=-1)[:, None]
        z_NHc = cached_branch_attention(
            q_NHe, entries_N1e, c_Nc[:, None], scheme, groups, cache, latent
        )
        out_Nd: torch.Tensor = self.output(
            torch.einsum("nhc,hvc->nhv", z_NHc, value_HVc).flatten(1)
        )
        return out_Nd

    def project(self, out_BTHV: torch.Tensor) -> torch.Tensor:
        """W_O of all heads."""
        out_BTd: torch.Tensor = self.output(out_BTHV.flatten(2))
        return out_BTd

    def up_weight(self) -> torch.Tensor:
        """W_UKV by head, [H, d_n + d_v, d_c]: the rows of the key, then those of the value."""
        return torch.unflatten(self.key_value_up.weight, 0, (self.widths.heads, -1))
