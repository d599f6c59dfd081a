"""Presidio as an optional second layer behind the rules; switched on by configuration.

Presidio 2.2.366 finds names that no list holds, by a spaCy model, and costs milliseconds a message.
Its entities for dates, places and groups are left out: on banking questions they flag one message
in ten for nothing. Two traps are closed here: its URL recogniser downloads the public suffix list
on first use (it is told to use the snapshot packaged with `tldextract`), and it downloads a missing
spaCy model by itself (a missing model is an error instead).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib import import_module, metadata, util
from typing import Any, Protocol, cast

from heliostat.errors import UserError
from jobs.support_templates.redaction.spans import Span

SPACY_MODEL = "en_core_web_sm"
"""The spaCy pipeline that presidio reads names with."""

THRESHOLD = 0.3
"""Lowest score of a find that counts."""

KIND_OF_ENTITY = {
    "PERSON": "NAME",
    "EMAIL_ADDRESS": "EMAIL",
    "PHONE_NUMBER": "PHONE",
    "CREDIT_CARD": "CARD",
    "US_SSN": "SSN",
    "US_ITIN": "SSN",
    "UK_NINO": "SSN",
    "IP_ADDRESS": "IP",
    "URL": "URL",
    "IBAN_CODE": "IBAN",
    "US_BANK_NUMBER": "ACCOUNT",
}
"""Presidio's entities and our kinds; what is not here is not asked for."""


class _Find(Protocol):
    """What presidio's analyzer returns for each find, as far as it is read here."""

    start: int
    end: int
    entity_type: str


class _Analyzer(Protocol):
    def analyze(
        self, text: str, language: str, entities: list[str], score_threshold: float
    ) -> list[_Find]: ...


class PresidioDetector:
    """Finds spans with presidio's analyzer; construct once, call for each piece of text."""

    def __init__(self) -> None:
        self._analyzer = _build_analyzer()
        self._version = (
            f"presidio-{metadata.version('presidio-analyzer')}"
            f"-{SPACY_MODEL}-{metadata.version(SPACY_MODEL.replace('_', '-'))}"
        )

    @property
    def version(self) -> str:
        """Versions of presidio and of the model, both of which decide what is found."""
        return self._version

    def __call__(self, text: str) -> Iterator[Span]:
        """Spans of every mapped entity; a find without a letter or digit is dropped."""
        finds = self._analyzer.analyze(
            text=text,
            language="en",
            entities=list(KIND_OF_ENTITY),
            score_threshold=THRESHOLD,
        )
        for find in finds:
            if any(character.isalnum() for character in text[find.start : find.end]):
                yield Span(find.start, find.end, KIND_OF_ENTITY[find.entity_type])


def _build_analyzer() -> _Analyzer:
    """Presidio's analyzer, offline."""
    if util.find_spec("presidio_analyzer") is None:
        raise UserError(
            "redaction with presidio is switched on but presidio-analyzer is not installed; "
            "run `pip install 'heliostat[presidio]'` or switch presidio off"
        )
    if util.find_spec(SPACY_MODEL) is None:
        raise UserError(
            f"redaction with presidio needs the spaCy model '{SPACY_MODEL}', which is not "
            f"installed; run `python -m spacy download {SPACY_MODEL}` or switch presidio off"
        )
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    # The module-level extractor of tldextract 5 is what presidio calls; without remote lists it
    # reads the snapshot in its package.
    extractor: Any = import_module("tldextract.tldextract")
    extractor.TLD_EXTRACTOR = extractor.TLDExtract(suffix_list_urls=())
    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    provider = NlpEngineProvider(
        nlp_configuration={
            "nlp_engine_name": "spacy",
            "models": [{"lang_code": "en", "model_name": SPACY_MODEL}],
        }
    )
    engine = AnalyzerEngine(nlp_engine=provider.create_engine(), supported_languages=["en"])
    return cast(_Analyzer, engine)
