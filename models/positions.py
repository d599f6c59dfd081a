"""Position schemes as data: which relative position P(i, j) a query at i gives to a key at j.

A scheme changes only how positions are assigned; weights never know. With r = i - j >= 0, window w,
interval k, group G, training length L and evaluated length n:

    rope, ntk_old, ntk, ntk_fixed, ntk_mixed, yarn    r, at the frequencies of the scheme
    pi                   r / k, k = max(1, n / L)
    rerope               r where r < w, else w
    leaky_rerope         r where r < w, else w + (r - w) / k, k > 1
    inv_leaky_rerope     the same with 0 < k < 1: a scheme of training, read with plain rope
    self_extend          r where r < w, else floor(i/G) - floor(j/G) + w - floor(w/G)
    dca                  dual chunks: see `query_positions`
    nope                 0: no positions at all

ReRoPE is kexue.fm archives 9706, 9708 and 9728; Self-Extend arXiv 2401.01325, dual chunk attention
arXiv 2402.17463. Every scheme is a sum of *branches*. A branch owns a part of the (query, key)
pairs and gives every query one position and every key one position, so its logits are those of
plain rotary attention: `rope` has one branch, the windowed schemes a near one (r < w) and a far
one, and dual chunks three. What attention needs of a scheme is `branches`, `query_positions`,
`key_positions` and `visible`; how they are computed is no business of this module.

A `PositionScheme` is what a user writes; a `PositionPlan` is a scheme made definite for one model
and one length. Both are frozen and hold no tensors. Refusals are `models.position_checks`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch

from models import rotary_frequencies
from models.rotary import RotaryLayout, RotaryTables, angle_tables
from models.yarn import YarnConfig

SchemeName = Literal[
    "rope",
    "pi",
    "ntk_old",
    "ntk",
    "ntk_fixed",
    "ntk_mixed",
    "yarn",
    "self_extend",
    "dca",
    "rerope",
    "leaky_rerope",
    "inv_leaky_rerope",
    "nope",
]
LogN = Literal["none", "post", "train"]
"""Scaling of the query at t visible keys: none; max(1, ln t / ln L); ln t / ln L."""
Branch = Literal["whole", "near", "far", "same_chunk", "previous_chunk", "earlier_chunks"]

SCHEME_NAMES: tuple[SchemeName, ...] = get_args(SchemeName)
WINDOWED: tuple[SchemeName, ...] = ("rerope", "leaky_rerope", "inv_leaky_rerope", "self_extend")
EXPANDED: tuple[SchemeName, ...] = ("pi", "ntk_old", "ntk", "ntk_fixed", "ntk_mixed", "yarn")
"""Schemes whose k is an expansion n / L and follows the evaluated length unless it is given."""
LARGEST_WINDOW = 2**20
FLOAT32_POSITIONS = 2**20
"""Positions from here on have their angles in float64."""


@dataclass(frozen=True)
class PositionScheme:
    """How positions are assigned, as a user writes it; fields a scheme does not use stay None."""

    name: SchemeName = "rope"
    """One of `SCHEME_NAMES`."""
    log_n: LogN = "none"
    """Scaling of the query by the logarithm of how many keys it sees."""
    window: int | None = None
    """w, tokens inside which relative positions are exact: rerope, leaky, self_extend."""
    interval: float | None = None
    """k: expansion of pi, ntk and yarn (None: evaluated length / L); interval of leaky."""
    group: int | None = None
    """G, tokens that share a far position: self_extend."""
    chunk: int | None = None
    """s, the largest position of dual chunks, below L; None: 3 L / 4."""
    local: int | None = None
    """l, tokens before a chunk that keep exact distances; None: L / 8. Chunks are s - l long."""
    beta: float = 0.625
    """Exponent of ntk_mixed."""
    compose: bool = False
    """Assign these positions on top of the YaRN that the model has of its own."""

    def __post_init__(self) -> None:
        if self.name not in SCHEME_NAMES:
            raise ValueError(f"name must be one of {', '.join(SCHEME_NAMES)}, got {self.name!r}.")
        if self.log_n not in get_args(LogN):
            raise ValueError(
                f"log_n must be one of {', '.join(get_args(LogN))}, got {self.log_n!r}."
            )
        self._require_fields_of_the_scheme()
        if self.compose and self.name in EXPANDED:
            raise ValueError(f"compose has no meaning for {self.name}: it sets frequencies itself.")
        if self.window is not None and not 1 <= self.window <= LARGEST_WINDOW:
            raise ValueError(f"window must lie in [1, 2^20], got {self.window}.")
        if self.group is not None and self.group < 1:
            raise ValueError(f"group must be at least 1, got {self.group}.")
        if self.interval is not None:
            self._require_interval(self.interval)

    def _require_fields_of_the_scheme(self) -> None:
        windowed = self.name in WINDOWED
        takes = {
            "window": windowed,
            "interval": self.name in (*EXPANDED, "leaky_rerope", "inv_leaky_rerope"),
            "group": self.name == "self_extend",
            "chunk": self.name == "dca",
            "local": self.name == "dca",
        }
        needs = {
            "window": windowed,
            "interval": self.name in ("leaky_rerope", "inv_leaky_rerope"),
            "group": self.name == "self_extend",
        }
        for field, takes_it in takes.items():
            value = getattr(self, field)
            if value is not None and not takes_it:
                raise ValueError(f"{field} ({value}) has no meaning for {self.name}: leave it out.")
            if value is None and needs.get(field, False):
                raise ValueError(f"{self.name} needs {field}.")

    def _require_interval(self, interval: float) -> None:
        if self.name == "leaky_rerope" and not interval >= 1.0:
            raise ValueError(f"interval of leaky_rerope must be above 1, got {interval}.")
        if self.name == "inv_leaky_rerope" and not 0.0 < interval <= 1.0:
            raise ValueError(f"interval of inv_leaky_rerope must lie in (0, 1), got {interval}.")
        if self.name in EXPANDED and not 1.0 <= interval < math.inf:
            raise ValueError(
                f"interval of {self.name} must be at least 1 and finite, got {interval}."
            )


@dataclass(frozen=True)
class PositionPlan:
    """A scheme made definite for one model and one evaluated length; build it with `plan`."""

    scheme: PositionScheme
    """What was asked for."""
    train_length: int
    """L, tokens that the model was trained at."""
    length: int
    """n, tokens that will be read: only the expanded schemes depend on it."""
    rotary_width: int
    """R, rotated channels of a head."""
    rotary_base: float
    """b."""
    layout: RotaryLayout
    """Which channels form a pair."""
    interval: float
    """k, definite; 1 for the schemes that have none."""
    chunk: int
    """s, definite; 0 for the schemes that have none."""
    local: int
    """l, definite; 0 for the schemes that have none."""
    yarn: YarnConfig | None = None
    """The model's own YaRN, whose frequencies and magnitude are kept; None: it has none."""

    @property
    def window(self) -> int:
        """w of a windowed scheme."""
        assert self.scheme.window is not None
        return self.scheme.window

    @property
    def group(self) -> int:
        """G of self_extend."""
        assert self.scheme.group is not None
        return self.scheme.group

    @property
    def chunk_length(self) -> int:
        """c = s - l of dual chunks."""
        return self.chunk - self.local


def plan(
    scheme: PositionScheme,
    *,
    train_length: int,
    length: int,
    rotary_width: int,
    rotary_base: float,
    layout: RotaryLayout = "half",
    yarn: YarnConfig | None = None,
) -> PositionPlan:
    """Fill in what `scheme` leaves to the model and to the length.

    A model with a YaRN of its own (`yarn`) was stretched already, so a scheme is put on top of it
    only where it says `compose`; L is then the length that the model was stretched to.

    Raises:
        ValueError: The scheme does not fit the model.
    """
    if yarn is not None and not scheme.compose:
        raise ValueError(
            f"the model has a YaRN of its own: set compose to true to put {scheme.name} on top."
        )
    if scheme.compose and yarn is None:
        raise ValueError("compose is true, but the model has no YaRN of its own: leave it out.")
    if train_length < 2:
        raise ValueError(f"train_length must be at least 2, got {train_length}.")
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}.")
    interval = scheme.interval
    if interval is None:
        interval = max(1.0, length / train_length) if scheme.name in EXPANDED else 1.0
    chunk = local = 0
    if scheme.name == "dca":
        chunk = train_length * 3 // 4 if scheme.chunk is None else scheme.chunk
        local = train_length // 8 if scheme.local is None else scheme.local
        if not 1 <= chunk < train_length:
            raise ValueError(
                f"chunk ({chunk}) of dca must lie in [1, {train_length}), below train_length."
            )
        if not 0 <= local < chunk:
            raise ValueError(f"local ({local}) of dca must lie in [0, {chunk}), below chunk.")
    return PositionPlan(
        scheme=scheme,
        train_length=train_length,
        length=length,
        rotary_width=rotary_width,
        rotary_base=rotary_base,
        layout=layout,
        interval=interval,
        chunk=chunk,
        local=local,
        yarn=yarn,
    )


def branches(position_plan: PositionPlan) -> tuple[Branch, ...]:
    """The parts of the (query, key) pairs that are attended to with their own positions."""
    name = position_plan.scheme.name
    if name == "dca":
        return ("same_chunk", "previous_chunk", "earlier_chunks")
    return ("near", "far") if name in WINDOWED else ("whole",)


def has_branches(position_plan: PositionPlan) -> bool:
    """Whether the plan has several branches, so that plain attention cannot compute it."""
    return len(branches(position_plan)) > 1


def query_positions(
    position_plan: PositionPlan, branch: Branch, positions: torch.Tensor
) -> torch.Tensor:
    """P_q: where the queries that stand at `positions` are put by `branch`; any shape.

    Dual chunks of length c: a key is put at j mod c. For keys of its own chunk a query is put at
    i mod c; for those of the chunk before at min(i mod c + c, s); for any earlier ones at s.
    """
    name, w, k = position_plan.scheme.name, position_plan.scheme.window, position_plan.interval
    if branch == "far":
        assert w is not None
        if name == "rerope":
            return torch.full_like(positions, w)
        if name == "self_extend":
            group = position_plan.group
            return positions // group + (w - w // group)
        return (positions.double() - w) / k + w
    if branch == "same_chunk":
        return positions % position_plan.chunk_length
    if branch == "previous_chunk":
        c = position_plan.chunk_length
        return (positions % c + c).clamp(max=position_plan.chunk)
    if branch == "earlier_chunks":
        return torch.full_like(positions, position_plan.chunk)
    return _plain_positions(position_plan, positions)


def key_positions(
    position_plan: PositionPlan, branch: Branch, positions: torch.Tensor
) -> torch.Tensor:
    """P_k: where the keys that stand at `positions` are put by `branch`; any shape."""
    if branch == "far":
        if position_plan.scheme.name == "rerope":
            return torch.zeros_like(positions)
        if position_plan.scheme.name == "self_extend":
            return positions // position_plan.group
        return positions.double() / position_plan.interval
    if branch in ("same_chunk", "previous_chunk", "earlier_chunks"):
        return positions % position_plan.chunk_length
    return _plain_positions(position_plan, positions)


def _plain_positions(position_plan: PositionPlan, positions: torch.Tensor) -> torch.Tensor:
    if position_plan.scheme.name == "pi":
        return positions.double() / position_plan.interval
    if position_plan.scheme.name == "nope":
        return torch.zeros_like(positions)
    return positions


def visible(
    position_plan: PositionPlan,
    branch: Branch,
    query_at: torch.Tensor,
    key_at: torch.Tensor,
) -> torch.Tensor:
    """Which pairs belong to `branch`, causality included; the two position tensors broadcast.

    The branches of a plan never overlap, and together they are the causal pairs.
    """
    distance = query_at - key_at
    if branch == "whole":
        return distance >= 0
    if branch == "near":
        return (distance >= 0) & (distance < position_plan.window)
    if branch == "far":
        return distance >= position_plan.window
    c = position_plan.chunk_length
    chunks = query_at // c - key_at // c
    if branch == "same_chunk":
        return (chunks == 0) & (distance >= 0)
    return chunks == 1 if branch == "previous_chunk" else chunks >= 2


def relative_positions(position_plan: PositionPlan, length: int) -> torch.Tensor:
    """The table P(i, j) for 0 <= j <= i < length, nan above the diagonal: [length, length]."""
    at = torch.arange(length)
    table = torch.full((length, length), math.nan, dtype=torch.float64)
    for branch in branches(position_plan):
        query = query_positions(position_plan, branch, at).double()
        key = key_positions(position_plan, branch, at).double()
        pairs = visible(position_plan, branch, at[:, None], at[None])
        table = torch.where(pairs, query[:, None] - key[None], table)
    return table


def max_relative_position(position_plan: PositionPlan, length: int) -> float:
    """The largest P(i, j) among `length` tokens, in closed form."""
    name, furthest = position_plan.scheme.name, length - 1
    if name == "nope":
        return 0.0
    if name == "pi":
        return furthest / position_plan.interval
    if name == "dca":
        if furthest < position_plan.chunk_length:
            return float(furthest)
        if furthest >= 2 * position_plan.chunk_length:
            # A query two chunks on is as far from the first key of a chunk as it gets.
            return float(position_plan.chunk)
        return float(min(furthest, position_plan.chunk))
    if name not in WINDOWED or furthest < position_plan.window:
        return float(furthest)
    w = position_plan.window
    if name == "rerope":
        return float(w)
    if name == "self_extend":
        return float(furthest // position_plan.group + w - w // position_plan.group)
    return w + (furthest - w) / position_plan.interval


def frequencies(position_plan: PositionPlan) -> torch.Tensor:
    """theta'_m of the plan, float32, or float64 where positions are large: [r], on the CPU.

    Made once for a plan; not to be changed.
    """
    with torch.device("cpu"), torch.inference_mode(mode=False):
        return _frequencies(position_plan)


def leaves_far_keys(position_plan: PositionPlan) -> bool:
    """Whether keys of the far branch are as they come: at position 0, and not scaled there."""
    is_scaled = position_plan.yarn is not None and position_plan.yarn.magnitude != 1.0
    return position_plan.scheme.name == "rerope" and not is_scaled


def tables(
    position_plan: PositionPlan,
    positions_BT: torch.Tensor,
    *,
    dtype: torch.dtype,
    is_scaled: bool = True,
) -> RotaryTables:
    """Cosines and sines for positions that a branch has assigned.

    Args:
        position_plan: A plan.
        positions_BT: Positions; any shape.
        dtype: Of the result.
        is_scaled: YaRN's temperature is in them; False where what is turned has it already.
    """
    factor = 1.0
    if is_scaled and position_plan.scheme.name == "yarn":
        factor = rotary_frequencies.yarn_factor(position_plan.interval)
    elif is_scaled and position_plan.yarn is not None:
        factor = position_plan.yarn.magnitude
    return angle_tables(
        positions_BT,
        frequencies(position_plan).to(positions_BT.device),
        dtype=dtype,
        factor=factor,
    )


def log_n_factor(position_plan: PositionPlan, counts: torch.Tensor) -> torch.Tensor:
    """What multiplies a query that sees `counts` keys (t, itself included): float32, same shape.

    `train` is ln t / ln L, which is 0 at t = 1 (harmless: one key takes all the weight); `post` is
    never below 1; `none` is 1 everywhere.
    """
    if position_plan.scheme.log_n == "none":
        return torch.ones_like(counts, dtype=torch.float32)
    # Both logarithms in one precision and on one device, so that t = L gives exactly 1.
    length = float(position_plan.train_length)
    trained = torch.tensor(length, dtype=torch.float64, device=counts.device).log()
    factor = counts.clamp(min=1).double().log() / trained
    if position_plan.scheme.log_n == "post":
        factor = factor.clamp(min=1.0)
    return factor.float()


@lru_cache(maxsize=64)
def _frequencies(position_plan: PositionPlan) -> torch.Tensor:
    name, k = position_plan.scheme.name, position_plan.interval
    width, base = position_plan.rotary_width, position_plan.rotary_base
    dtype = torch.float64 if position_plan.length > FLOAT32_POSITIONS else torch.float32
    if name == "ntk_old":
        return rotary_frequencies.ntk_old_frequencies(width, base, k, dtype=dtype)
    if name == "ntk":
        return rotary_frequencies.ntk_frequencies(width, base, k, dtype=dtype)
    if name == "ntk_fixed":
        return rotary_frequencies.ntk_fixed_frequencies(width, base, k, dtype=dtype)
    if name == "ntk_mixed":
        beta = position_plan.scheme.beta
        return rotary_frequencies.ntk_mixed_frequencies(width, base, k, beta=beta, dtype=dtype)
    if name == "yarn":
        return rotary_frequencies.yarn_frequencies(
            width, base, k, train_length=position_plan.train_length, dtype=dtype
        )
    if position_plan.yarn is not None:
        return rotary_frequencies.stretched_frequencies(
            width, base, position_plan.yarn, dtype=dtype
        )
    return rotary_frequencies.rope_frequencies(width, base, dtype=dtype)
