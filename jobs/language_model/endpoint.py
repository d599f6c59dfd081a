"""The endpoint: a language model with routes of its own and those of OpenAI's clients.

POST /language_model/v1/completions, /score      GET /language_model/v1/models
POST /v1/completions, /v1/chat/completions       GET /v1/models
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

from fastapi import APIRouter

from heliostat.runs.bundle import Bundle
from heliostat.serve.contract import Example, Page
from heliostat.serve.generation.config import GenerationConfig
from heliostat.serve.generation.native_routes import native_router
from heliostat.serve.generation.openai_routes import openai_router
from heliostat.serve.generation.served import NamedModel, ServedLanguageModel
from heliostat.serve.service import Service
from jobs.language_model.config import Config
from jobs.pretrained.hf_bundle import open_language_model
from models.paged_lm import PagedLM
from models.precision import DTYPES, cast_weights

VIEW = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
EXAMPLES = (
    Example(
        "Continue a text",
        {"prompt": "The capital of France is", "max_tokens": 40, "temperature": 0.0},
    ),
    Example(
        "Several ways on, most probable tokens told",
        {"prompt": "Once upon a time", "max_tokens": 60, "temperature": 0.8, "logprobs": 3},
    ),
)


def endpoint(config: Config) -> LanguageModelEndpoint:
    """The job's side of the endpoint."""
    return LanguageModelEndpoint(config.generation, config.serve.device)


class LanguageModelEndpoint:
    """A language model over HTTP."""

    title = "Language model"
    prefix = "/language_model/v1"
    page = Page(path="/completions", examples=EXAMPLES, view=VIEW)

    def __init__(self, generation: GenerationConfig, device: str = "cpu") -> None:
        self._generation, self._device = generation, device

    def open(self, bundle: Bundle) -> ServedLanguageModel:
        """Load a version."""
        opened = open_language_model(bundle)
        model = opened.model.to(device=self._device)
        dtype = DTYPES[self._generation.precision]
        cast_weights(model, dtype)
        context = self._generation.within(opened.decoder.max_positions)

        def build(variant: Hashable) -> PagedLM:
            if variant is not None:
                raise ValueError("this model is run in one way only")
            return PagedLM(
                model,
                vocab_size=opened.decoder.vocab_size,
                context=context,
                pages=self._generation.pages(PagedLM.page_tokens),
                sequences=self._generation.sequences,
                dtype=dtype,
                device=self._device,
            )

        about = {
            "layers": opened.decoder.layers,
            "context": context,
            "precision": self._generation.precision,
        }
        return ServedLanguageModel(
            NamedModel(opened.name, opened.codec, build, about), self._generation
        )

    def router(self, service: Service) -> APIRouter:
        """The routes of its own."""
        return native_router(service)

    def common_router(self, service: Service) -> APIRouter:
        """The routes of OpenAI's clients."""
        return openai_router(service)
