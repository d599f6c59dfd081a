"""Where a training begins: at random weights, a bundle of this job, or a published checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from heliostat.data.pretrained import find_checkpoint
from heliostat.errors import ConfigError
from heliostat.runs.bundle import load_bundle
from heliostat.runs.inputs import Input
from heliostat.runs.manifest import MANIFEST_NAME
from heliostat.runs.run import Run
from heliostat.storage import Location
from heliostat.train.weights import FILE, write_weights
from jobs.mla_moe.bundle import KIND, PIECES, TOKENS, bundle_decoder
from jobs.mla_moe.config import Config
from jobs.mla_moe.model_config import decoder_config
from jobs.pretrained.hf_folder import convert_weights, read_decoder_config
from models.decoder_config import DecoderConfig

FREE = ("max_positions", "initial_std", "experts.capacity_factor", "experts.exempt_share")
"""What may differ between a checkpoint and the training that begins with it; the longest sequence
may only grow."""


@dataclass(frozen=True)
class Start:
    """A checkpoint to begin with."""

    weights: Location
    """A weights folder in our layout."""
    decoder: DecoderConfig
    """Its shape."""
    tokens: str | None
    """What its tokens are, `bytes`, `ids` or `pieces`; None where it does not say."""
    origin: Input
    """For card and report."""


def open_source(config: Config, run: Run) -> Start | None:
    """What `model.source` names, converted once; None for random weights.

    Raises:
        ConfigError: the checkpoint has another shape than the section `model` describes.
        BundleError: the bundle is damaged, or of another job.
        DataError: the folder holds no checkpoint.
    """
    source = config.model.source
    if source is None:
        return None
    place = Location.of(source)
    if (place / MANIFEST_NAME).exists():
        bundle = load_bundle(place, KIND)
        decoder = bundle_decoder(bundle)
        tokens = str(bundle.json(TOKENS)["kind"])
        _require_tokens(config, source, tokens)
        require_shape(config, decoder)
        kept = run.cache / f"bundle-{bundle.version}"
        if not (kept / FILE).exists():
            write_weights(kept, bundle.weights(), {"source": source})
        what = f"bundle {source}, version {bundle.version}"
        return Start(kept, decoder, tokens, Input("first weights", "real", what, "of the bundle"))
    folder = find_checkpoint(source, run.cache)
    decoder = read_decoder_config(folder)
    require_shape(config, decoder)
    origin = Input("first weights", "real", f"checkpoint {source}", "of its publisher")
    return Start(convert_weights(folder, decoder, run.cache), decoder, None, origin)


def _require_tokens(config: Config, source: str, tokens: str) -> None:
    """Refuse text whose tokens are not those that a bundle was trained on."""
    given = config.data.tokenizer
    is_its_own = given is not None and Location.of(given) == Location.of(source)
    if tokens == PIECES and not is_its_own:
        raise ConfigError(
            f"model.source is {source}, which reads the tokens of its own tokenizer, but "
            f"data.tokenizer is {given or 'null'}: data.tokenizer={source}"
        )
    if tokens == "bytes" and given is not None:
        raise ConfigError(
            f"model.source is {source}, which reads bytes, but data.tokenizer is {given}: leave it "
            "out"
        )


def require_shape(config: Config, found: DecoderConfig) -> None:
    """Refuse a checkpoint that the section `model` does not describe."""
    theirs = dict(_flat(asdict(found)))
    ours = dict(_flat(asdict(decoder_config(config.model))))
    if found.yarn is None:
        # A longer reach may be begun here.
        ours = {key: value for key, value in ours.items() if not key.startswith("yarn")}
        theirs.pop("yarn")
    keys = [key for key in {**theirs, **ours} if key not in FREE]
    differing = [key for key in keys if ours.get(key) != theirs.get(key)]
    if config.model.max_positions < found.max_positions:
        differing.append("max_positions")
    if differing:
        key = differing[0]
        more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise ConfigError(
            f"model.source is {config.model.source}, whose {key} is {theirs.get(key)}, but the "
            f"section model gives {ours.get(key)}{more}: take the size that it was trained with"
        )


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
