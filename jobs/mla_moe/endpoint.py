"""The endpoint: completions and scores over a latent cache, and where tokens are routed to.

POST /mla_moe/v1/completions, /score, /routing    GET /mla_moe/v1/models
POST /v1/completions                              GET /v1/models
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from typing import cast

import torch
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

from heliostat.errors import BundleError
from heliostat.runs.bundle import Bundle
from heliostat.serve.contract import Example, Page
from heliostat.serve.errors import ApiError
from heliostat.serve.generation.byte_codec import ByteCodec
from heliostat.serve.generation.config import GenerationConfig
from heliostat.serve.generation.hf_codec import HfCodec
from heliostat.serve.generation.intake import LanguageService
from heliostat.serve.generation.native_routes import native_router
from heliostat.serve.generation.openai_routes import openai_router
from heliostat.serve.generation.served import NamedModel, ServedLanguageModel
from heliostat.serve.generation.wire import OwnText, OwnTokens
from heliostat.serve.service import Service
from jobs.mla_moe.bundle import PIECES, TOKENS, open_language_model
from jobs.mla_moe.config import Config
from models.balance import max_violation
from models.decoder import DecoderLM
from models.paged_lm import PagedLM
from models.precision import DTYPES, cast_weights

NAME = "mla_moe"
VIEW = """
const text = document.createElement("pre");
text.textContent = request.prompt + answer.choices[0].text;
element.append(text);
"""
EXAMPLES = (
    Example(
        "Continue Python source",
        {"prompt": "import os\n\n\ndef ", "max_tokens": 80, "temperature": 0.7, "seed": 0},
    ),
)


class RoutingRequest(BaseModel):
    """A text whose routing is asked for."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(default=None, description="Name of the model; null: any.")
    text: OwnText = None
    tokens: OwnTokens = None
    layers: list[StrictInt] | None = Field(
        default=None, description="Layers with experts, from 0 among all; null: all of them."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> RoutingRequest:
        if (self.text is None) == (self.tokens is None):
            raise ValueError("give text or tokens, and not both")
        return self


class LayerRouting(BaseModel):
    """Where the tokens of a text went in one layer."""

    layer: int
    load: list[int] = Field(description="Tokens that went to each expert.")
    maxvio: float = Field(description="Load of the busiest expert above the mean load.")
    groups_per_token_mean: float = Field(description="Groups of experts that a token went to.")


class RoutingAnswer(BaseModel):
    """The routing of a text."""

    model: str
    version: str
    layers: list[LayerRouting]


def endpoint(config: Config) -> MixtureEndpoint:
    """The job's side of the endpoint."""
    return MixtureEndpoint(config.generation, config.serve.device)


def _codec(bundle: Bundle) -> ByteCodec | HfCodec:
    tokens = bundle.json(TOKENS)
    end_of_text = frozenset({cast(int, tokens["end_of_text"])})
    if tokens["kind"] == PIECES:
        codec = HfCodec(bundle.folder)
        codec.stop_tokens |= end_of_text
        return codec
    if tokens["kind"] == "bytes":
        return ByteCodec(end_of_text)
    raise BundleError(
        f"{bundle.source} was trained on token ids whose tokenizer is not in it: train with "
        "data.tokenizer, or export it, put its tokenizer.json into the folder and serve that with "
        "language_model"
    )


class MixtureEndpoint:
    """A language model with experts over HTTP."""

    title = "Language model with latent attention and experts"
    prefix = "/mla_moe/v1"
    page = Page(path="/completions", examples=EXAMPLES, view=VIEW)

    def __init__(self, generation: GenerationConfig, device: str = "cpu") -> None:
        self._generation, self._device = generation, device

    def open(self, bundle: Bundle) -> ServedLanguageModel:
        """Load a version; a model of ids whose tokenizer is not there has no text to serve."""
        codec = _codec(bundle)
        model = open_language_model(bundle).to(self._device)
        dtype = DTYPES[self._generation.precision]
        cast_weights(model, dtype)
        context = self._generation.within(model.config.max_positions)

        def build(variant: Hashable) -> PagedLM:
            if variant is not None:
                raise ValueError("this model is run in one way only")
            return PagedLM(
                model,
                vocab_size=model.config.vocab_size,
                context=context,
                pages=self._generation.pages(PagedLM.page_tokens),
                sequences=self._generation.sequences,
                dtype=dtype,
                device=self._device,
            )

        about = {
            "layers": model.config.layers,
            "context": context,
            "precision": self._generation.precision,
        }
        return ServedLanguageModel(NamedModel(NAME, codec, build, about, model), self._generation)

    def router(self, service: Service) -> APIRouter:
        """The routes of its own."""
        router = native_router(service)
        language = LanguageService(service)

        @router.post("/routing", tags=["generation"])
        async def routing(asked: RoutingRequest) -> RoutingAnswer:
            """Which experts the tokens of a text go to."""
            chosen = language.choose(asked.model)
            field = "tokens" if asked.text is None else "text"
            given = asked.tokens if asked.text is None else asked.text
            prompt = await language.tokens(chosen, given or [], field)
            language.room(chosen, prompt, 0, field)
            model = chosen.model.named.extra
            assert isinstance(model, DecoderLM)
            wanted = expert_layers(model) if asked.layers is None else asked.layers
            unknown = sorted(set(wanted) - set(expert_layers(model)))
            if unknown:
                message = f"layer {unknown[0]} has no experts; {expert_layers(model)} have"
                raise ApiError(400, message, field="layers", code="invalid")
            layers = await service.aside(partial(routing_of, model, prompt, wanted))
            return RoutingAnswer(
                model=chosen.model.name, version=chosen.version.name, layers=layers
            )

        return router

    def common_router(self, service: Service) -> APIRouter:
        """The routes of OpenAI's clients."""
        return openai_router(service)


def expert_layers(model: DecoderLM) -> list[int]:
    """The layers that have experts."""
    return [layer for layer in range(model.config.layers) if model.config.has_experts(layer)]


def routing_of(model: DecoderLM, tokens: tuple[int, ...], layers: list[int]) -> list[LayerRouting]:
    """The routing of a text in the layers asked for."""
    device = model.output_weight.device
    with torch.inference_mode():
        seen = model.decoder.observed(torch.tensor([tokens], device=device)).routing
    by_layer = dict(zip(expert_layers(model), seen, strict=True))
    return [
        LayerRouting(
            layer=layer,
            load=[int(count) for count in by_layer[layer].load[0].tolist()],
            maxvio=max_violation(by_layer[layer].load[0]),
            groups_per_token_mean=float(by_layer[layer].sent[0].sum()) / len(tokens),
        )
        for layer in layers
    ]
