"""The adapted decoder as a checkpoint of its own, which later runs fine-tune without stage 1.

Templates come and go faster than the way people write: new ones need a new classifier, in hours,
but no new adaptation (Wyatte et al., arXiv 2405.15765, section 4). The folder is in Hugging Face
layout, so transformers reads it too, and says which redactor wrote the transcripts.
"""

from __future__ import annotations

import json

from heliostat.errors import DataError, UserError
from heliostat.runs.run import Run
from heliostat.storage import Location
from heliostat.train.weights import ABOUT, read_weights, write_weights
from jobs.corpora.tokenizer import write_codec
from jobs.support_templates.config import RANDOM_WEIGHTS, Config
from jobs.support_templates.pipeline import Base, Conversations, adapt
from jobs.support_templates.run_report import Adaptation, adaptation_of
from models.hf_config import to_hf_config
from models.hf_layout import to_hf

FOLDER = "adapted"
CONFIG = "config.json"


def adapted_decoder(
    config: Config, run: Run, base: Base, conversations: Conversations
) -> tuple[Location, Adaptation | None]:
    """Weights of a decoder that knows the domain, and what adapting it cost.

    Adapted here and kept in the run's folder, or with `adapted` the checkpoint itself; then
    nothing was spent.
    """
    if config.adapted:
        _check_redactor(config.model.source, conversations.redactor_version)
        return base.weights, None
    done = adapt(config, run, base, conversations)
    _write(run.artefact(FOLDER), run, base, conversations, done.final)
    return done.final, adaptation_of(config, base, done)


def _write(
    folder: Location, run: Run, base: Base, conversations: Conversations, weights: Location
) -> None:
    if (folder / ABOUT).exists():
        return
    hf_config = to_hf_config(base.decoder) | {"eos_token_id": base.codec.end_of_text}
    (folder / CONFIG).write_text(json.dumps(hf_config, indent=1))
    write_codec(base.codec, folder)
    tensors = to_hf(read_weights(weights), base.decoder)
    about = {"redactor_version": conversations.redactor_version, "run": run.id}
    write_weights(folder, {name: tensor.contiguous() for name, tensor in tensors.items()}, about)


def _check_redactor(source: str, wanted: str) -> None:
    """Refuse a decoder that has read transcripts of another redactor."""
    assert source != RANDOM_WEIGHTS
    file = Location.of(source) / ABOUT
    if not file.exists():
        raise UserError(
            f"adapted is true, but model.source = {source} is not the folder `{FOLDER}` of a run "
            f"of support_templates: it has no {ABOUT}"
        )
    try:
        found = json.loads(file.read_text())["redactor_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file.uri} does not say which redactor was used") from error
    if found != wanted:
        raise UserError(
            f"{source} was adapted to transcripts of redactor {found}, and this is redactor "
            f"{wanted}: adapt anew (adapted=false)"
        )
