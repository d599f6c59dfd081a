"""The bundle of support_templates, and its plain Hugging Face form.

A classifier is only usable with the label map, the tokenizer, the cutting of contexts, the redactor
version and the temperature that belong to it, so all of them are in the bundle and nothing is
looked up elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import torch

from heliostat.data.table import Table
from heliostat.errors import BundleError, ConfigError
from heliostat.runs.bundle import Bundle, save_bundle
from heliostat.runs.canonical import fingerprint
from heliostat.runs.card import Card
from heliostat.runs.export import LogitProof
from heliostat.runs.inputs import Input
from heliostat.runs.run import Run
from heliostat.storage import Location
from jobs.corpora.tokenizer import FILE, TextCodec, load_codec
from jobs.support_templates.config import Config
from jobs.support_templates.contexts import ContextConfig
from jobs.support_templates.data.rows import Template
from jobs.support_templates.label_map import LabelMap, check_head_width, label_map_from_json
from jobs.support_templates.pipeline import Base, Classifier, Conversations, Labelled
from models.classifier import DecoderClassifier, Pooling
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.hf_config import to_hf_config
from models.hf_layout import to_hf

KIND = "support_templates"
EXPORTER = "jobs.support_templates.bundle:export_classifier"
TOLERANCE = 1e-4


@dataclass(frozen=True)
class TemplateClassifier:
    """A bundle, ready to classify."""

    model: DecoderClassifier
    decoder: DecoderConfig
    codec: TextCodec
    label_map: LabelMap
    context: ContextConfig
    temperature: float
    templates: Mapping[str, Template]
    redactor_version: str

    def with_window(self, max_tokens: int | None) -> TemplateClassifier:
        """The same with another longest context; with None as it is."""
        if max_tokens is None:
            return self
        if max_tokens > self.decoder.max_positions:
            raise ConfigError(
                f"suggest.max_tokens is {max_tokens}, but this decoder reads "
                f"{self.decoder.max_positions} tokens at most"
            )
        return replace(self, context=replace(self.context, max_tokens=max_tokens))


def save_classifier(
    config: Config,
    run: Run,
    base: Base,
    conversations: Conversations,
    labelled: Labelled,
    classifier: Classifier,
    inputs: Sequence[Input],
) -> Location:
    """Write the bundle of a run."""
    folder = run.artefact("bundle")
    evaluation = classifier.evaluation
    settings = {
        "decoder": asdict(base.decoder),
        "pooling": config.dft.pooling,
        "context": asdict(config.dft.context),
        "temperature": evaluation.temperature,
        "redactor_version": conversations.redactor_version,
        "presidio": config.data.presidio,
        "split_salt": config.data.salt,
        "top5_at_release": evaluation.overall.top5,
    }
    version = save_bundle(
        folder,
        weights=classifier.trained.final,
        parts={
            "classifier.json": settings,
            "label_map.json": labelled.label_map.to_json(),
            "templates.json": {
                key: _template_json(template) for key, template in conversations.templates.items()
            },
            f"tokenizer/{FILE}": base.codec.json_text,
        },
        card=_card(run, evaluation.metrics(), inputs),
        kind=KIND,
        metadata={
            "run": run.id,
            "config": run.digest,
            "data": _data_fingerprint(conversations, labelled),
            "exporter": EXPORTER,
        },
    )
    run.register(folder, version)
    return folder


def open_classifier(bundle: Bundle) -> TemplateClassifier:
    """A verified bundle as a model that can classify.

    Raises `BundleError` when its parts do not belong together.
    """
    if bundle.kind != KIND:
        raise BundleError(f"{bundle.source} is a bundle of {bundle.kind}, expected {KIND}")
    settings = cast(dict[str, Any], bundle.json("classifier.json"))
    try:
        decoder = DecoderConfig(**settings["decoder"])
        reading = ContextConfig(**settings["context"])
    except TypeError as error:
        raise BundleError(
            f"{bundle.source} was made by another version of Heliostat ({error}): train again, or "
            "open it with that version"
        ) from None
    label_map = label_map_from_json(bundle.path("label_map.json").read_text(encoding="utf-8"))
    weights = bundle.weights()
    check_head_width(label_map, len(weights["head.weight"]))
    with torch.device("meta"):
        generator = torch.Generator(device="cpu")
        pooling = cast(Pooling, settings["pooling"])
        blank = Decoder(decoder, generator)
        model = DecoderClassifier(blank, len(label_map), generator, pooling=pooling)
    model.load_state_dict(weights, assign=True)
    raw = cast(dict[str, dict[str, Any]], bundle.json("templates.json"))
    return TemplateClassifier(
        model=model.eval(),
        decoder=decoder,
        codec=load_codec(bundle.path("tokenizer")),
        label_map=label_map,
        context=reading,
        temperature=float(settings["temperature"]),
        templates={key: _template_of(value) for key, value in raw.items()},
        redactor_version=str(settings["redactor_version"]),
    )


def export_classifier(bundle: Bundle, folder: Path) -> LogitProof:
    """Write config and weights as transformers reads them, and compare logits."""
    from safetensors.torch import save_file
    from transformers import AutoModelForSequenceClassification

    classifier = open_classifier(bundle)
    if classifier.codec.pad is None:
        raise BundleError(
            f"{bundle.source} cannot be exported: transformers' classifiers find the last token by "
            "a padding token, and this tokenizer has none"
        )
    hf_config = to_hf_config(classifier.decoder, classes=len(classifier.label_map))
    hf_config |= {
        "pad_token_id": classifier.codec.pad,
        "id2label": {str(i): label for i, label in enumerate(classifier.label_map.labels)},
        "label2id": {label: i for i, label in enumerate(classifier.label_map.labels)},
    }
    (folder / "config.json").write_text(json.dumps(hf_config, indent=1), encoding="utf-8")
    tensors = to_hf(classifier.model.state_dict(), classifier.decoder)
    save_file(
        {name: value.contiguous() for name, value in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    exported = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    lowest = max(classifier.codec.pad, classifier.codec.end_of_text) + 1
    ids = torch.randint(lowest, classifier.decoder.vocab_size, (8, 48), generator=generator)
    with torch.inference_mode():
        ours = classifier.model(ids, attention_mask=torch.ones_like(ids, dtype=torch.bool))
        theirs = exported.eval()(ids).logits
    return LogitProof(reference=ours, exported=theirs, tolerance=TOLERANCE)


def _data_fingerprint(conversations: Conversations, labelled: Labelled) -> str:
    """Stands for the transcripts that were adapted to and the samples that were learnt from."""
    samples = Table.open(labelled.train).fingerprint
    return fingerprint({"transcripts": conversations.redacted.fingerprint, "samples": samples})


def _card(run: Run, metrics: Mapping[str, float], inputs: Sequence[Input]) -> Card:
    return Card(
        title="Reply template classifier",
        what=(
            "Reads a redacted support conversation and ranks the reply templates that an advocate "
            "may send next. Only the advocate sees the ranking; nothing is written to a customer."
        ),
        inputs=list(inputs),
        metrics=metrics,
        limits=(
            "It knows the templates of its label map only; later ones need a new classifier. It "
            "must be given text redacted by the redactor version that it names. Figures measured "
            "on generated conversations say how the method works, not how well it does on yours."
        ),
        how_made=(
            f"`heliostat train support_templates --run {run.id}`: domain-adaptive pretraining, "
            "then discriminative fine-tuning (Wyatte et al., arXiv 2405.15765)."
        ),
        licence="Apache-2.0 for the weights made here; the inputs keep their own licences.",
    )


def _template_json(template: Template) -> dict[str, object]:
    values = asdict(template)
    for name in ("introduced_at", "retired_at"):
        if values[name] is not None:
            values[name] = values[name].isoformat()
    return values


def _template_of(values: dict[str, Any]) -> Template:
    dates = {
        name: datetime.fromisoformat(values[name]) if values[name] else None
        for name in ("introduced_at", "retired_at")
    }
    return Template(**{**values, **dates})
