"""A small Llama with a real tokenizer as a bundle, and its endpoint behind a real HTTP server."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import uvicorn
from ray_head import free_ports
from safetensors.torch import save_file

from heliostat.runs.card import Card
from heliostat.runs.inputs import Input
from heliostat.serve.app import build_app
from heliostat.serve.batcher import BatchLimits
from heliostat.serve.config import OFF, LimitsConfig, ServeConfig
from heliostat.serve.contract import Endpoint
from heliostat.serve.generation.config import GenerationConfig
from heliostat.serve.lineup import Lineup, Share
from heliostat.serve.passage import Passage
from heliostat.serve.service import Service
from heliostat.serve.telemetry import Telemetry
from heliostat.storage import Location
from jobs.language_model.endpoint import LanguageModelEndpoint
from jobs.pretrained.hf_bundle import read_checkpoint, save_language_model
from models.decoder import DecoderLM
from models.decoder_config import llama_config
from models.hf_config import to_hf_config
from models.hf_layout import to_hf

NAME = "tiny"
TEXT = [
    "the quick brown fox jumps over the lazy dog and runs into the forest at night",
    "once upon a time there was a small model that answered everybody in whole sentences €",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_checkpoint(folder: Path, seed: int = 0, *, has_chat: bool = True) -> Path:
    """A folder as transformers writes it: random weights, a byte-level BPE, a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"eos_token": "<|im_end|>"}
    if has_chat:
        settings["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = replace(
        llama_config(
            vocab_size=320,
            width=32,
            layers=2,
            heads=4,
            key_value_heads=2,
            feed_forward_width=48,
            max_positions=600,
        ),
        initial_std=0.15,
    )
    model = DecoderLM(config, torch.Generator().manual_seed(seed))
    tensors = {name: one.contiguous() for name, one in to_hf(model.state_dict(), config).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(to_hf_config(config)))
    return folder


def write_lm_bundle(folder: Path, seed: int = 0, *, name: str = NAME, has_chat: bool = True) -> str:
    """A bundle of such a checkpoint; returns its version."""
    checkpoint = write_checkpoint(folder.with_name(folder.name + "-hf"), seed, has_chat=has_chat)
    card = Card(
        title=name,
        what="A small model of random weights.",
        inputs=[Input("weights", "generated", "random", "Apache-2.0")],
        metrics={},
        limits="It says nothing of sense.",
        how_made="Drawn from a generator.",
        licence="Apache-2.0",
    )
    return save_language_model(Location.of(folder), read_checkpoint(checkpoint), name, card, {})


@dataclass
class Serving:
    """An endpoint that answers."""

    url: str
    service: Service
    statuses: list[tuple[str, int]]
    """Route and status of every answer, in order."""


@contextmanager
def serving_lm(
    bundles: Sequence[tuple[Path, float]],
    *,
    generation: GenerationConfig | None = None,
    limits: LimitsConfig | None = None,
    keys: str = OFF,
    endpoint: Endpoint | None = None,
    queue: int = 256,
) -> Iterator[Serving]:
    """Serve bundles with their shares, in this process but through the whole application."""
    endpoint = endpoint or LanguageModelEndpoint(generation or GenerationConfig())
    (port,) = free_ports(1)
    telemetry, statuses = Telemetry("language_model"), []

    def note(route: str, passage: Passage) -> None:
        statuses.append((route, passage.status))

    telemetry.request = note  # type: ignore[method-assign]
    service = Service(endpoint, BatchLimits(16, 16384, 0.005, queue), telemetry)
    config = ServeConfig(keys=keys, limits=limits or LimitsConfig(request_s=60.0))
    ready = threading.Event()
    server: list[uvicorn.Server] = []

    async def main() -> None:
        lineup = Lineup(tuple(Share(str(folder), percent) for folder, percent in bundles))
        await service.apply(lineup)
        app = build_app(endpoint, service, config, telemetry, lambda: 1, "only")
        settings = uvicorn.Config(app, port=port, log_level="error", lifespan="off")
        server.append(uvicorn.Server(settings))
        ready.set()
        await server[0].serve()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(60)
    while not server[0].started:
        assert thread.is_alive()
        thread.join(0.01)
    yield Serving(f"http://127.0.0.1:{port}", service, statuses)
    server[0].should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def engine_of(served: Serving) -> Any:
    return served.service.newest.model.engine(served.service.thread)


def wait_until(condition: Any) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)
