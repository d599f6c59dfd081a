"""ReRoPE against plain rotary attention and against the two-matrix form, in one process.

Three comparisons, on one CPU thread and in processor time, which does not count what others do on
the machine:

* prefill: attention of n = 4096 tokens, 4 heads of 64, w = 512, rotations included: our one pass
  over the pairs against torch's causal attention on plainly rotated queries and keys, and against
  the dense form that computes both matrices and selects;
* memory: peak of the resident size above what it was before, n = 8192, one head, each in a process
  of its own;
* decode: one token of an attention layer after 8192 cached ones, against the same layer and the
  same cache with plain rotary positions.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.peak import added_peak_mib
from benchmarks.result import Measure, at_least, at_most, options, report
from models import positions
from models.attention import CausalSelfAttention
from models.branch_attention import AttentionBackend, branch_attention, branch_inputs
from models.branch_cache import StepScheme, step_scheme
from models.contiguous_cache import ContiguousCache
from models.decoder_config import DecoderConfig, llama_config
from models.positions import PositionPlan, PositionScheme
from models.rotary import rotary_tables, rotate

HEADS, HEAD_WIDTH, WINDOW = 4, 64, 512
PREFILL, MEMORY, CACHED = 4096, 8192, 8192
REPEATS = 5
DECODED = 64
"""Tokens decoded in one sample."""


def main() -> None:
    """Run the benchmark."""
    given = options(__doc__ or "", pairs=REPEATS).parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        measures = [*prefill(given.pairs), *memory(given.pairs), decode(given.pairs)]
    report("rerope", measures, {"heads": HEADS, "head_width": HEAD_WIDTH}, given.out)


def prefill(pairs: int) -> list[Measure]:
    """Merge against plain rotary attention and against dense."""
    q, k, v = inputs(PREFILL, HEADS)
    merge, dense = (planned(q, k, v, backend) for backend in ("merge", "dense"))
    plain = plain_attention(q, k, v)
    samples = interleaved([merge, plain, dense], pairs)
    return [
        at_most(
            f"prefill of {PREFILL} tokens, w = {WINDOW}: ReRoPE / rotary attention of torch",
            samples[0],
            samples[1],
            1.6,
        ),
        at_least(
            f"prefill of {PREFILL} tokens, w = {WINDOW}: two matrices / ReRoPE",
            samples[0],
            samples[2],
            4.0,
        ),
    ]


def memory(pairs: int) -> list[Measure]:
    """Peak memory of merge and dense."""
    found: dict[AttentionBackend, list[float]] = {"merge": [], "dense": []}
    for _ in range(min(pairs, 3)):
        for backend, samples in found.items():
            samples.append(peak_mib(backend))
    return [
        at_most(
            f"peak memory of attention over {MEMORY} tokens: ReRoPE / two matrices",
            found["merge"],
            found["dense"],
            1 / 8,
            "MiB",
        )
    ]


def decode(pairs: int) -> Measure:
    """One token after many, with and without the scheme."""
    config = llama_config(
        vocab_size=8,
        width=HEADS * HEAD_WIDTH,
        layers=1,
        heads=HEADS,
        key_value_heads=HEADS,
        feed_forward_width=8,
    )
    generator = torch.Generator().manual_seed(0)
    layer = CausalSelfAttention(config)
    for parameter in layer.parameters():
        parameter.data.normal_(0.0, 0.02, generator=generator)
    scheme = PositionScheme("rerope", window=WINDOW)
    position_plan = plan_of(scheme, CACHED + 4096, HEAD_WIDTH)
    ours = decoder_of(layer, config, position_plan)
    peer = decoder_of(layer, config, None)
    samples = interleaved([ours, peer], pairs)
    return at_most(
        f"decoding after {CACHED} tokens, w = {WINDOW}: ReRoPE / rotary, one attention layer",
        [sample / DECODED for sample in samples[0]],
        [sample / DECODED for sample in samples[1]],
        1.25,
    )


def decoder_of(
    layer: CausalSelfAttention, config: DecoderConfig, position_plan: PositionPlan | None
) -> Callable[[], object]:
    """A function that decodes `DECODED` tokens after a filled cache, always the same ones."""
    generator = torch.Generator().manual_seed(1)
    layout = layer.cache_layout(position_plan)
    cache = ContiguousCache([layout], capacity=CACHED + 4096)
    x = torch.randn(CACHED, config.width, generator=generator)

    def forward(x: torch.Tensor) -> None:
        step = cache.step([len(x)])
        scheme: StepScheme | None = None
        if position_plan is None:
            rotary = rotary_tables(
                step.positions_N,
                rotary_width=config.rotary_width,
                base=config.rotary_base,
                dtype=x.dtype,
            )
        else:
            scheme = step_scheme(position_plan, step, x.dtype)
            rotary = scheme.branches[0].query
        layer.cached(x, rotary, step.groups, step.layer(0), scheme)

    forward(x)

    def some() -> None:
        cache.lengths = [CACHED]
        for token in range(DECODED):
            forward(x[token : token + 1])

    return some


def planned(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backend: AttentionBackend
) -> Callable[[], object]:
    """Attention under ReRoPE with its tables and tiles made, as a model shares them over layers."""
    length = q.shape[1]
    position_plan = plan_of(PositionScheme("rerope", window=WINDOW), length, q.shape[3])
    shared = branch_inputs(
        position_plan,
        torch.arange(length)[None],
        dtype=q.dtype,
        start_is_zero=True,
        backend=backend,
    )
    return lambda: branch_attention(q, k, v, shared)


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Callable[[], object]:
    """Rotate once, then torch's causal attention."""
    at = torch.arange(q.shape[1])[None]
    tables = rotary_tables(at, rotary_width=q.shape[3], base=10_000.0, dtype=q.dtype)

    def attend() -> torch.Tensor:
        turned = (rotate(q, tables), rotate(k, tables), v)
        heads_first = [x.transpose(1, 2) for x in turned]
        return F.scaled_dot_product_attention(*heads_first, is_causal=True)

    return attend


def plan_of(scheme: PositionScheme, length: int, rotary_width: int) -> PositionPlan:
    """A plan for a model that was trained at twice the window."""
    return positions.plan(
        scheme,
        train_length=2 * WINDOW,
        length=length,
        rotary_width=rotary_width,
        rotary_base=10_000.0,
    )


def inputs(length: int, heads: int) -> list[torch.Tensor]:
    """Queries, keys and values."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, length, heads, HEAD_WIDTH)
    return [torch.randn(shape, generator=generator) for _ in range(3)]


def interleaved(contenders: list[Callable[[], object]], pairs: int) -> list[list[float]]:
    """Processor seconds of each contender, in turn, after one call that is not counted."""
    samples: list[list[float]] = [[] for _ in contenders]
    for contender in contenders:
        contender()
    for _ in range(pairs):
        for place, contender in enumerate(contenders):
            began = time.process_time()
            contender()
            samples[place].append(time.process_time() - began)
    return samples


def peak_mib(backend: AttentionBackend) -> float:
    """MiB that one call adds to the peak of a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(sending, backend))
    process.start()
    found: float = receiving.recv()
    process.join()
    return found


def _measure_peak(sending: object, backend: AttentionBackend) -> None:
    torch.set_num_threads(1)
    with torch.inference_mode():
        # A small call first: what libraries load at first use is no part of the comparison.
        planned(*inputs(64, 1), backend)()
        given = inputs(MEMORY, 1)
        added = added_peak_mib(lambda: planned(*given, backend)())
    sending.send(added)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
