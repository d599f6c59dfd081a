"""The bundle of mla_moe: a decoder with its shape, and its Hugging Face form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from heliostat.errors import BundleError
from heliostat.runs.bundle import Bundle, save_bundle
from heliostat.runs.card import Card
from heliostat.runs.export import LogitProof
from heliostat.runs.inputs import Input
from heliostat.runs.run import Run
from heliostat.serve.generation.hf_codec import FILES
from heliostat.storage import Location
from jobs.mla_moe.config import Config
from jobs.mla_moe.data import Corpus, fingerprint
from jobs.mla_moe.pipeline import Trained
from models.decoder import DecoderLM
from models.decoder_config import DecoderConfig, decoder_config_from
from models.hf_config import to_hf_config
from models.hf_layout import to_hf

KIND = "mla_moe"
EXPORTER = "jobs.mla_moe.bundle:export_language_model"
DECODER = "decoder.json"
TOKENS = "tokens.json"
PIECES = "pieces"
"""Tokens of the tokenizer that lies in the bundle."""
TOLERANCE = 2e-5
PROOF_ROWS = 64
PROOF_LENGTH = 48


def save_language_model(
    config: Config,
    run: Run,
    corpus: Corpus,
    trained: Trained,
    inputs: Sequence[Input],
    *,
    tokens: str | None = None,
) -> Location:
    """Write the bundle of a run; `tokens` is what those of the checkpoint it began with are."""
    folder = run.artefact("bundle")
    metadata: dict[str, object] = {
        "run": run.id,
        "config": run.digest,
        "data": fingerprint(corpus),
    }
    if config.export != "none":
        metadata["exporter"] = EXPORTER
    if config.model.source is not None:
        metadata["source"] = config.model.source
    version = save_bundle(
        folder,
        weights=trained.result.final,
        parts={
            DECODER: asdict(trained.task.decoder),
            TOKENS: {
                "kind": _kind(config, corpus, tokens),
                "end_of_text": config.data.end_of_text,
                "trained_length": config.data.length,
            },
            **(corpus.tokenizer or {}),
        },
        card=_card(config, run, trained, inputs),
        kind=KIND,
        metadata=metadata,
    )
    run.register(folder, version)
    return folder


def _kind(config: Config, corpus: Corpus, tokens: str | None) -> str:
    if corpus.tokenizer is not None:
        return PIECES
    return tokens or ("bytes" if config.data.train is None else "ids")


def bundle_decoder(bundle: Bundle) -> DecoderConfig:
    """The shape of a bundle's model; `BundleError` when it is a bundle of something else."""
    if bundle.kind != KIND:
        raise BundleError(f"{bundle.source} is a bundle of {bundle.kind}, expected {KIND}")
    return decoder_config_from(cast(dict[str, Any], bundle.json(DECODER)))


def open_language_model(bundle: Bundle) -> DecoderLM:
    """A verified bundle as a model, ready to score and to generate."""
    decoder = bundle_decoder(bundle)
    with torch.device("meta"):
        model = DecoderLM(decoder, torch.Generator(device="cpu"))
    try:
        model.load_state_dict(bundle.weights(), assign=True)
    except RuntimeError as error:
        raise BundleError(
            f"the weights of {bundle.source} do not fit its {DECODER}: {error}"
        ) from error
    return model.eval()


def export_language_model(bundle: Bundle, folder: Path) -> LogitProof:
    """Write config, weights and tokenizer as transformers reads them, and compare logits."""
    end_of_text = cast(int, bundle.json(TOKENS)["end_of_text"])
    if bundle.json(TOKENS)["kind"] == PIECES:
        for name in FILES:
            if (bundle.folder / name).is_file():
                (folder / name).write_bytes((bundle.folder / name).read_bytes())
    return export_decoder(open_language_model(bundle), folder, end_of_text)


def export_decoder(model: DecoderLM, folder: Path, end_of_text: int = 0) -> LogitProof:
    """Write a decoder in Hugging Face layout; the proof has the logits of random sequences."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    decoder = model.config
    values = to_hf_config(decoder) | {"bos_token_id": None, "eos_token_id": end_of_text}
    (folder / "config.json").write_text(json.dumps(values, indent=1), encoding="utf-8")
    tensors = to_hf(model.state_dict(), decoder)
    save_file(
        {name: value.contiguous() for name, value in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    exported = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(decoder.vocab_size, (PROOF_ROWS, PROOF_LENGTH), generator=generator)
    with torch.inference_mode():
        return LogitProof(reference=model(ids), exported=exported(ids).logits, tolerance=TOLERANCE)


def _card(config: Config, run: Run, trained: Trained, inputs: Sequence[Input]) -> Card:
    evaluation, source = trained.evaluation, config.model.source
    seen = f"It has seen rows of {trained.task.length} tokens of one kind of text"
    return Card(
        title="Language model with latent attention and a mixture of experts",
        what=(
            "Predicts the next token of a text. A token caches one latent and one rotary key a "
            f"layer, {evaluation.cache_bytes_per_token} bytes in all in float32."
        ),
        inputs=list(inputs),
        metrics=evaluation.metrics(),
        limits=(
            f"{seen} and knows nothing else. A small model of small data: for measuring the "
            "method, not for use."
            if source is None
            else f"It began with {source}, whose limits it has. {seen} since."
        ),
        how_made=(
            f"`heliostat train mla_moe --run {run.id}`: multi-head latent attention and "
            "fine-grained experts (DeepSeek-V2, arXiv 2405.04434; V3, arXiv 2412.19437)."
        ),
        licence=(
            "Apache-2.0 for the weights made here; the inputs keep their own licences."
            if source is None
            else f"That of {source} for the weights; the other inputs keep their own licences."
        ),
    )
