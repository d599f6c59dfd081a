"""The bundle of a rotary language model: weights, shape, and what schemes need to know of it.

A scheme is meaningless without the length that the model was trained at, and a wrong guess shows as
bad text only. So `positions.json` records length, base, layout, head width, log-n mode and scheme
of training, and a bundle that lacks one of them is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from heliostat.errors import BundleError
from heliostat.runs.bundle import Bundle, save_bundle
from heliostat.runs.card import Card
from heliostat.runs.inputs import Input
from heliostat.runs.run import Run
from heliostat.serve.generation.hf_codec import HfCodec
from heliostat.storage import Location
from jobs.pretrained.hf_bundle import open_language_model
from jobs.rerope.shapes import LanguageModel, Shape, blank, shape_from_json, shape_to_json
from jobs.rerope.tasks import Variant
from models.decoder_config import DecoderConfig
from models.positions import LogN, PositionScheme

KIND = "rerope"
POSITIONS = "positions.json"
SHAPE = "shape.json"
_RECORDED = ("train_length", "rotary_base", "layout", "head_width", "log_n", "training_scheme")


@dataclass(frozen=True)
class RotaryModel:
    """A bundle, ready to read text under any scheme."""

    name: str
    model: LanguageModel
    shape: Shape
    train_length: int
    """L."""
    log_n: LogN
    """Log-n mode of training: `none` or `train`."""
    training_scheme: str
    """Name of the scheme of training."""


def save_model(
    run: Run,
    folder: Location,
    weights: Location,
    *,
    variant: Variant,
    shape: Shape,
    scheme: PositionScheme,
    train_length: int,
    metrics: Mapping[str, float],
    inputs: Sequence[Input],
    data: str,
) -> Location:
    """Write the bundle of one model; `data` stands for the text that it was trained on."""
    recorded = {
        "name": f"{variant}-l{train_length}",
        "train_length": train_length,
        "rotary_base": shape.rotary_base,
        "layout": "half",
        "head_width": shape.head_width,
        "log_n": scheme.log_n,
        "training_scheme": asdict(scheme),
    }
    version = save_bundle(
        folder,
        weights=weights,
        parts={SHAPE: shape_to_json(shape), POSITIONS: recorded},
        card=_card(run, variant, shape, train_length, metrics, inputs),
        kind=KIND,
        metadata={"run": run.id, "config": run.digest, "data": data},
    )
    if variant == "plain":
        run.register(folder, version)
    return folder


def open_model(bundle: Bundle) -> RotaryModel:
    """A verified bundle as a model.

    Raises:
        BundleError: Another kind of bundle, or one that does not say what schemes need to know.
    """
    if bundle.kind != KIND:
        raise BundleError(f"{bundle.source} is a bundle of {bundle.kind}, expected {KIND}")
    recorded = cast(dict[str, Any], bundle.json(POSITIONS))
    if absent := [name for name in _RECORDED if recorded.get(name) is None]:
        raise BundleError(
            f"{POSITIONS} of {bundle.source} does not say {', '.join(absent)}, which no scheme can "
            "do without"
        )
    shape = shape_from_json(bundle.json(SHAPE))
    described = (recorded["rotary_base"], recorded["head_width"], recorded["layout"])
    if described != (shape.rotary_base, shape.head_width, "half"):
        raise BundleError(
            f"{POSITIONS} of {bundle.source} says base, head width and layout {described}, but "
            f"{SHAPE} describes another model"
        )
    model = blank(shape)
    model.load_state_dict(bundle.weights(), assign=True)
    return RotaryModel(
        name=str(recorded["name"]),
        model=model.requires_grad_(False).eval(),
        shape=shape,
        train_length=int(recorded["train_length"]),
        log_n=cast(LogN, recorded["log_n"]),
        training_scheme=str(recorded["training_scheme"]["name"]),
    )


def open_checkpoint(bundle: Bundle, trained_length: int | None) -> tuple[RotaryModel, HfCodec]:
    """A checkpoint in Hugging Face layout as a model to be read under any scheme.

    Args:
        bundle: of language_model.
        trained_length: L; None for the longest text that its config allows.

    Raises:
        BundleError: Its positions are not plain rotary ones.
    """
    found = open_language_model(bundle)
    decoder = found.decoder
    if decoder.latent is not None or decoder.yarn is not None:
        raise BundleError(
            f"{bundle.source} has latent attention or frequencies that were changed already: "
            "schemes need plain rotary attention; serve it with language_model"
        )
    rotary = RotaryModel(
        name=found.name,
        model=found.model,
        shape=decoder,
        train_length=trained_length or decoder.max_positions,
        log_n="none",
        training_scheme="rope",
    )
    return rotary, found.codec


def _card(
    run: Run,
    variant: Variant,
    shape: Shape,
    train_length: int,
    metrics: Mapping[str, float],
    inputs: Sequence[Input],
) -> Card:
    attention = ""
    if isinstance(shape, DecoderConfig) and shape.hybrid is not None:
        full = ", ".join(str(layer) for layer in shape.hybrid.full_layers(shape.layers))
        attention = (
            f" Layers see the last {shape.hybrid.sliding_window} bytes only; except, counted from "
            f"0, {full}, to which schemes apply."
        )
    return Card(
        title=f"Byte-level language model of Python source, trained at {train_length} tokens",
        what=(
            "Predicts the next byte of Python source. Made to compare position schemes: the same "
            f"weights are read at several times the {train_length} bytes they were trained on. "
            f"Positions in training: {variant.replace('_', ' ')}.{attention}"
        ),
        inputs=list(inputs),
        metrics=metrics,
        limits=(
            "Too small to write useful code. Losses compare schemes with each other on this text; "
            "they are not comparable with those of other tokenizers."
        ),
        how_made=f"`heliostat train rerope --run {run.id}`.",
        licence="Apache-2.0 for the weights made here; the inputs keep their own licences.",
    )
