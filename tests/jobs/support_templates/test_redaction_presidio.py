"""The optional second layer: its absence is one clear sentence, its presence keeps the promises."""

from __future__ import annotations

from importlib import util

import pytest

from heliostat.errors import UserError
from jobs.support_templates.redaction import build_redactor
from jobs.support_templates.redaction.presidio import KIND_OF_ENTITY, SPACY_MODEL
from jobs.support_templates.redaction.spans import KINDS

HAS_PRESIDIO = util.find_spec("presidio_analyzer") is not None
HAS_MODEL = util.find_spec(SPACY_MODEL) is not None


@pytest.mark.skipif(HAS_PRESIDIO, reason="presidio-analyzer is installed")
def test_presidio_that_is_not_installed_is_refused_naming_the_extra() -> None:
    with pytest.raises(UserError, match=r"pip install 'heliostat\[presidio\]'"):
        build_redactor(presidio=True)


@pytest.mark.skipif(not HAS_PRESIDIO or HAS_MODEL, reason="needs presidio without its model")
def test_a_missing_language_model_is_refused_and_not_downloaded() -> None:
    with pytest.raises(UserError, match=SPACY_MODEL):
        build_redactor(presidio=True)


@pytest.mark.skipif(not (HAS_PRESIDIO and HAS_MODEL), reason="needs presidio and its model")
def test_the_second_layer_adds_to_the_rules_and_stays_idempotent() -> None:
    rules, layered = build_redactor(presidio=False), build_redactor(presidio=True)
    assert layered.version.startswith(f"{rules.version}+presidio-")
    once = layered.redact("my name is john smith, my card is 4111 1111 1111 1111")
    assert once.counts == {"NAME": 1, "CARD": 1}
    assert layered.redact(once.text).spans == ()


def test_every_entity_that_is_asked_for_has_a_kind() -> None:
    assert set(KIND_OF_ENTITY.values()) <= set(KINDS)
