"""Latent attention and experts: our decoder against transformers' deepseek_v2, same weights.

Everything runs in one process on one thread, in float32, ours and theirs in turns; a sample is the
processor time of one call, a ratio that of two calls of one round. Peak memory is that of two fresh
processes, above what they hold before the call.

- decode: a token after a cached context, of a model of 4 layers, width 512, 8 heads; a sample is
  five tokens in a row, as in generation, because the first of ours after one of theirs finds the
  processor's caches full of what they copied
- prefill: a whole prompt through the same model
- training step: forward, backward and AdamW on 4096 tokens in rows of 128, at the `laptop` size of
  mla_moe and 4 times as wide
- cache: bytes a token of the live cache objects

`--contexts 2048 --prompts 1536 --memory 2048` is a quick look.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.peak import added_peak_mib
from benchmarks.result import Measure, at_least, at_most, options, report
from models.contiguous_cache import ContiguousCache
from models.decoder import DecoderLM
from models.decoder_config import DecoderConfig, deepseek_config
from models.expert_config import ExpertsConfig
from models.hf_config import to_hf_config
from models.hf_layout import to_hf
from models.latent_config import LatentConfig
from models.losses import next_token_targets

DECODE_LIMITS = {2048: 6.0, 8192: 15.0, 16384: 20.0}
CHUNK = 1024
ROW = 128
TOKENS = 4096
IN_A_ROW = 5
"""Tokens of a sample of decoding."""


def generating_model(positions: int) -> DecoderConfig:
    """The model of the decode and prefill measures."""
    return deepseek_config(
        vocab_size=256,
        width=512,
        layers=4,
        heads=8,
        head_width=64,
        feed_forward_width=1024,
        latent=LatentConfig(width=128, rotary_width=32, value_width=64),
        experts=ExpertsConfig(routed=16, shared=1, per_token=3, width=256, dense_layers=1),
        max_positions=positions,
        initial_std=0.02,
    )


def training_model(scale: int) -> DecoderConfig:
    """`laptop` of mla_moe with the softmax gate of V2, `scale` times as wide."""
    return deepseek_config(
        vocab_size=256,
        width=128 * scale,
        layers=4,
        heads=4 * scale,
        head_width=32,
        feed_forward_width=384 * scale,
        latent=LatentConfig(
            width=64 * scale, rotary_width=48, value_width=32, query_width=64 * scale
        ),
        experts=ExpertsConfig(
            routed=16,
            shared=1,
            per_token=3,
            width=64 * scale,
            dense_layers=1,
            groups=4,
            groups_per_token=2,
        ),
        initial_std=0.02,
    )


def both(config: DecoderConfig) -> tuple[DecoderLM, Any]:
    """Our model, and transformers' with the same weights."""
    from transformers import AutoModelForCausalLM

    ours = DecoderLM(config, torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "config.json").write_text(json.dumps(to_hf_config(config)), encoding="utf-8")
        tensors = to_hf(ours.state_dict(), config)
        save_file(
            {name: value.contiguous() for name, value in tensors.items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
        return ours, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def cpu_s(call: Callable[[], object]) -> float:
    """Processor time of a call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def in_turns(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int
) -> tuple[list[float], list[float]]:
    """Times of both, each round one after the other, after a round to warm up."""
    ours(), theirs()
    pairs = [(cpu_s(ours), cpu_s(theirs)) for _ in range(rounds)]
    return [mine for mine, _ in pairs], [peer for _, peer in pairs]


def in_a_row(step: Callable[[], object]) -> None:
    """The tokens of a sample."""
    for _ in range(IN_A_ROW):
        step()


def measure_decode(contexts: Sequence[int], rounds: int) -> list[Measure]:
    """One token after contexts of these lengths."""
    from transformers import DynamicCache

    room = max(contexts) + 1 + (rounds + 1) * IN_A_ROW
    config = generating_model(room)
    ours, theirs = both(config)
    ours.eval(), theirs.eval()
    ids = torch.randint(256, (room,), generator=torch.Generator().manual_seed(1))
    measures = []
    for context in contexts:
        cache = ContiguousCache(ours.cache_layouts(), capacity=room)
        for start in range(0, context, CHUNK):
            chunk = ids[start : min(start + CHUNK, context)]
            ours.cached(chunk, cache.step([len(chunk)]), [0])
        their_cache = DynamicCache(config=theirs.config)
        fill(their_cache, cache, context, config)
        places = iter(range(context, room))

        def step_ours(cache: ContiguousCache = cache) -> torch.Tensor:
            return ours.cached(ids[cache.lengths[0]][None], cache.step([1]))

        def step_theirs(their_cache: Any = their_cache, places: Any = places) -> torch.Tensor:
            token = ids[next(places)][None, None]
            logits: torch.Tensor = theirs(token, past_key_values=their_cache, use_cache=True).logits
            return logits[0]

        difference = float((step_ours() - step_theirs()).abs().max())
        assert difference < 1e-4, difference
        mine, peer = in_turns(partial(in_a_row, step_ours), partial(in_a_row, step_theirs), rounds)
        mine, peer = [s / IN_A_ROW for s in mine], [s / IN_A_ROW for s in peer]
        name = f"decode a token at context {context}: transformers / ours"
        measures.append(at_least(name, mine, peer, DECODE_LIMITS.get(context, 1.0)))
    per_token = (
        sum(layer.keys.shape[-1] + layer.values.shape[-1] for layer in their_cache.layers) * 4
    )
    measures.append(
        at_most(
            "cache, bytes a token: ours / transformers",
            [float(cache.bytes_per_token)],
            [float(per_token)],
            1.0,
            "bytes",
        )
    )
    return measures


def fill(target: Any, source: ContiguousCache, context: int, config: DecoderConfig) -> None:
    """Put our cached context into transformers' cache, whose rotary pairs are neighbours."""
    latent = config.latent
    assert latent is not None
    for index, layer in enumerate(source.kept):
        entries = layer["latent_key"][:context][None, None]
        c, key = torch.split(entries, [latent.width, latent.rotary_width], dim=-1)
        pairs = torch.stack(key.chunk(2, dim=-1), dim=-1).flatten(-2)
        target.update(c.clone(), pairs.clone(), index)


def measure_prefill(prompts: Sequence[int], rounds: int) -> list[Measure]:
    """Whole prompts."""
    ours, theirs = both(generating_model(max(prompts)))
    ours.eval(), theirs.eval()
    measures = []
    for length in prompts:
        ids = torch.randint(256, (1, length), generator=torch.Generator().manual_seed(1))
        mine, peer = in_turns(
            lambda ids=ids: ours(ids), lambda ids=ids: theirs(ids, use_cache=False), rounds
        )
        name = f"prefill of {length} tokens, whole model: transformers / ours"
        measures.append(at_least(name, mine, peer, 1.3))
    return measures


def measure_training(rounds: int) -> list[Measure]:
    """A training step at two widths."""
    measures = []
    for scale, label in ((1, "laptop size"), (4, "4 times as wide")):
        ours, theirs = both(training_model(scale))
        theirs.train()
        ids = torch.randint(256, (TOKENS // ROW, ROW), generator=torch.Generator().manual_seed(1))
        targets = next_token_targets(ids)
        own, peer = (
            torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for model in (ours, theirs)
        )

        def step_ours(
            ours: DecoderLM = ours, own: Any = own, ids: Any = ids, targets: Any = targets
        ) -> None:
            own.zero_grad()
            (ours(ids, targets_BT=targets) / ids.numel()).backward()
            own.step()

        def step_theirs(theirs: Any = theirs, peer: Any = peer, ids: Any = ids) -> None:
            peer.zero_grad()
            theirs(input_ids=ids, labels=ids).loss.backward()
            peer.step()

        mine, other = in_turns(step_ours, step_theirs, rounds)
        name = f"training step, {label}: transformers / ours"
        measures.append(at_least(name, mine, other, 1.0))
    return measures


def measure_memory(length: int) -> list[Measure]:
    """Peak memory of a prefill, each in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.language_models", "--peak", str(length), "--whose"]
    ours, theirs = (
        float(subprocess.run([*command, whose], capture_output=True, check=True, text=True).stdout)
        for whose in ("ours", "theirs")
    )
    name = f"peak memory of a prefill of {length} tokens: ours / transformers"
    return [at_most(name, [ours], [theirs], 0.5, "MiB")]


def peak_memory_mib(length: int, whose: str) -> float:
    """How far a prefill raises the resident memory of this process."""
    ours, theirs = both(generating_model(length))
    model = ours.eval() if whose == "ours" else theirs.eval()
    ids = torch.randint(256, (1, length), generator=torch.Generator().manual_seed(1))
    model(ids[:, :8])
    return added_peak_mib(lambda: model(ids))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = options(__doc__ or "", pairs=5)
    parser.add_argument("--contexts", type=int, nargs="*", default=[*DECODE_LIMITS])
    parser.add_argument("--prompts", type=int, nargs="*", default=[1536, 4096])
    parser.add_argument("--memory", type=int, default=8192, help="prompt of the memory measure")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--whose", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark."""
    given = arguments()
    torch.set_num_threads(1)
    if given.peak is not None:
        with torch.inference_mode():
            print(peak_memory_mib(given.peak, given.whose))
        return
    measures: list[Measure] = []
    with torch.inference_mode():
        if given.contexts:
            measures += measure_decode(given.contexts, given.pairs)
        if given.prompts:
            measures += measure_prefill(given.prompts, given.pairs)
    measures += measure_training(given.pairs)
    measures += measure_memory(given.memory)
    report("language_models", measures, {}, given.out)


if __name__ == "__main__":
    main()
