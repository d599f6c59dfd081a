"""language_model: a checkpoint in Hugging Face format becomes a bundle that the platform serves.

Nothing is trained. The checkpoint is read, computed once by transformers and once by our decoder,
and saved with its tokenizer only if both give the same logits.
"""

from __future__ import annotations

import torch

from heliostat.data.pretrained import find_checkpoint
from heliostat.errors import DataError
from heliostat.runs.card import Card
from heliostat.runs.inputs import Input
from heliostat.runs.run import Run
from heliostat.runs.summary import RunSummary
from jobs.language_model.config import Config
from jobs.pretrained.hf_bundle import (
    Checkpoint,
    decoder_of,
    read_checkpoint,
    save_language_model,
)
from models.counting import parameter_count

__all__ = ["run"]

TOLERANCE = 1e-3
"""Largest difference of a logit, in units of the largest logit."""
CHECKED_TOKENS = 48


def run(config: Config, run: Run) -> RunSummary:
    """Find the checkpoint, compare it with transformers, save the bundle."""
    checkpoint = read_checkpoint(find_checkpoint(config.model.source, run.cache))
    name = config.model.served_name
    difference = logit_difference(checkpoint, config.seed)
    if not difference <= TOLERANCE:
        raise DataError(
            f"{checkpoint.folder}: our logits differ from transformers' by {difference:.2g} of the "
            f"largest; at most {TOLERANCE:g} is accepted"
        )
    parameters = parameter_count(checkpoint.decoder)
    folder = run.artefact("bundle")
    version = save_language_model(
        folder,
        checkpoint,
        name,
        _card(config, name, difference),
        {"run": run.id, "config": run.digest, "source": config.model.source},
    )
    run.register(folder, version)
    run.finish({"logit_difference": difference, "parameters": float(parameters)})
    decoder = checkpoint.decoder
    return RunSummary(
        title=f"{name}, from {config.model.source}",
        columns=("parameters", "layers", "context", "vocabulary", "logits: ours / transformers"),
        rows=((parameters, decoder.layers, decoder.max_positions, decoder.vocab_size, difference),),
        paths={"bundle": folder.uri},
        next_command=f"heliostat serve language_model {folder.uri}",
    )


@torch.inference_mode()
def logit_difference(checkpoint: Checkpoint, seed: int) -> float:
    """Largest difference between our logits and transformers', over the largest logit."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    generator = torch.Generator().manual_seed(seed)
    size = (2, min(CHECKED_TOKENS, checkpoint.decoder.max_positions))
    ids = torch.randint(checkpoint.decoder.vocab_size, size, generator=generator)
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    expected = theirs.eval()(ids).logits
    del theirs
    found = decoder_of(checkpoint)(ids)
    return float((found - expected).abs().max() / expected.abs().max())


def _card(config: Config, name: str, difference: float) -> Card:
    return Card(
        title=name,
        what=(
            "A causal language model: it continues a text, or answers a conversation where it has "
            "a chat template."
        ),
        inputs=[Input("checkpoint", "real", config.model.source, "of its publisher")],
        metrics={"logit_difference": difference},
        limits=(
            "Heliostat converted this model and trained nothing. What it was trained on, what it "
            "is good for and what it must not be used for is said by its publisher."
        ),
        how_made=(
            f"`heliostat train language_model model.source={config.model.source}`; its logits were "
            "compared with those of transformers on random tokens (logit_difference: the largest "
            "difference over the largest logit)."
        ),
        licence="Of its publisher.",
    )
