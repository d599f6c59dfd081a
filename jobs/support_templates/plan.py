"""The trainings of a run, for `heliostat estimate`: nothing is read or prepared."""

from __future__ import annotations

from heliostat.cluster.fit_plan import FitPlan
from heliostat.data.pretrained import checkpoint_config
from heliostat.errors import ConfigError
from heliostat.storage import Location
from jobs.support_templates.config import RANDOM_WEIGHTS, Config, decoder_of
from jobs.support_templates.tasks import LanguageModelling, TemplateClassification
from models.counting import PYTHIA
from models.decoder_config import DecoderConfig
from models.hf_config import from_hf_config

PAPER_TEMPLATES = 640
"""Classes assumed where no label map exists yet: those of the paper."""


def plan(config: Config) -> list[FitPlan]:
    """What `run` will train, in order."""
    decoder = planned_decoder(config)
    nowhere = Location.of("/nonexistent")
    plans = []
    if config.model.source == RANDOM_WEIGHTS:
        plans.append(("general", config.general.training))
    if not config.adapted:
        plans.append(("dapt", config.dapt))
    fits = [
        FitPlan(
            name=name,
            task=LanguageModelling(
                name=name,
                decoder=decoder,
                documents=nowhere,
                validation=nowhere,
                seq_len=stage.seq_len,
                end_of_text=0,
                pad=1,
                seed=config.seed,
                validation_rows=stage.validation_rows,
            ),
            fit=stage.fit,
            resources=config.resources,
            tokens_per_sample=stage.seq_len,
        )
        for name, stage in plans
    ]
    classifier = TemplateClassification(
        name="dft",
        decoder=decoder,
        pretrained=None,
        classes=PAPER_TEMPLATES,
        samples=nowhere,
        validation=nowhere,
        pad=1,
        seed=config.seed,
        max_tokens=config.dft.context.max_tokens,
    )
    tunings = [
        FitPlan(
            name=name,
            task=classifier,
            fit=config.dft.fit,
            resources=config.resources,
            samples_per_epoch=config.dft.label_budget,
            tokens_per_sample=config.dft.context.max_tokens,
        )
        for name in (("dft-general", "dft") if config.compare and not config.adapted else ("dft",))
    ]
    return [*fits, *tunings]


def planned_decoder(config: Config) -> DecoderConfig:
    """The shape of the decoder without fetching or converting any weights."""
    source = config.model.source
    if source == RANDOM_WEIGHTS:
        return decoder_of(config.model)
    size = source.rpartition("/pythia-")[2]
    if size in PYTHIA:
        return PYTHIA[size]
    found = checkpoint_config(source)
    if found is not None:
        return from_hf_config(found)
    raise ConfigError(
        f"model.source is {source!r}: an estimate needs a folder with config.json, package:NAME or "
        f"a Pythia size ({', '.join(PYTHIA)})"
    )
