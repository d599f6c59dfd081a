"""From a conversation to suggested templates, and one version of the classifier that does it.

The order is that of training: redact with the bundle's redactor, cut the context as the bundle
says, classify, divide by the temperature, mask what is retired, renormalise. Nothing here knows of
HTTP.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from heliostat.errors import BundleError
from heliostat.runs.bundle import Bundle
from jobs.support_templates.bundle import TemplateClassifier, open_classifier
from jobs.support_templates.contexts import Window, context, context_marks, context_texts
from jobs.support_templates.data.rows import Message, Template
from jobs.support_templates.label_map import LabelMap
from jobs.support_templates.redaction.redactor import Redactor, build_redactor
from jobs.support_templates.split import is_held_out

ACTIVE_S = 1.0
PAD_TO = 16
"""Contexts are padded to a multiple of this, so that few shapes occur."""


@dataclass(frozen=True)
class Conversation:
    """A conversation that is ready for the classifier."""

    window: Window
    redactions: Mapping[str, int]
    """Replaced spans by kind."""


@dataclass(frozen=True)
class Scores:
    """What the classifier says of a conversation."""

    logits: NDArray[np.float32]
    """[classes]"""
    label_map: LabelMap
    """Names the classes; another version may have another."""

    def best(self, k: int) -> frozenset[str]:
        """The k templates with the highest logits, retired ones included."""
        order = np.argsort(-self.logits, kind="stable")[:k]
        return frozenset(self.label_map.name(int(index)) for index in order)


@dataclass(frozen=True)
class Ranking:
    """Templates with their probabilities, the best first."""

    template_ids: tuple[str, ...]
    probabilities: tuple[float, ...]


class SuggestionModel:
    """One version of the classifier, as the platform serves it."""

    def __init__(
        self,
        bundle: Bundle,
        templates: Callable[[], Mapping[str, Template]] | None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        device: str = "cpu",
    ) -> None:
        """Open a version.

        Args:
            bundle: of the job.
            templates: gives today's templates; None for those of the bundle.
            temperature: what logits are divided by; None for what the bundle says.
            max_tokens: longest context; None for what the bundle says.
            device: where the model computes.
        """
        found: TemplateClassifier = open_classifier(bundle).with_window(max_tokens)
        self.classifier = found if temperature is None else replace(found, temperature=temperature)
        self._device = device
        self.classifier.model.to(device)
        self._settings = bundle.json("classifier.json")
        self._redactor: Redactor = build_redactor(bool(self._settings.get("presidio", False)))
        if self._redactor.version != self.classifier.redactor_version:
            raise BundleError(
                f"{bundle.source} was made with redactor {self.classifier.redactor_version}, and "
                f"this is redactor {self._redactor.version}: train again, or serve it with the "
                "version of Heliostat that made it"
            )
        self._templates_now = templates
        self._active_until = 0.0
        self._active_mask = self.classifier.label_map.active_mask(())
        self._marks = context_marks(
            self.classifier.context,
            self.classifier.codec.encode,
            self.classifier.codec.end_of_text,
        )

    # What the platform calls.

    def cost(self, item: Conversation) -> int:
        """Tokens of the context."""
        return len(item.window.tokens)

    def predict(self, items: Sequence[Conversation]) -> list[Scores]:
        """The scores of each context."""
        longest = max(len(item.window.tokens) for item in items)
        width = -(-longest // PAD_TO) * PAD_TO
        codec = self.classifier.codec
        pad = codec.pad if codec.pad is not None else codec.end_of_text
        ids = np.full((len(items), width), pad, dtype=np.int64)
        mask = np.zeros((len(items), width), dtype=bool)
        for row, item in enumerate(items):
            tokens = item.window.tokens
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
        with torch.inference_mode():
            logits = self.classifier.model(
                torch.from_numpy(ids).to(self._device),
                attention_mask=torch.from_numpy(mask).to(self._device),
            )
        label_map = self.classifier.label_map
        return [Scores(row, label_map) for row in logits.float().cpu().numpy()]

    def example(self) -> Conversation:
        """A context of full length."""
        limit = self.classifier.context.max_tokens
        window = Window(tuple([self.classifier.codec.end_of_text] * limit), 1, 1, False, False)
        return Conversation(window, {})

    def about(self) -> dict[str, object]:
        """Labels, temperature, and how many templates are masked now."""
        return {
            "label_map_version": self.classifier.label_map.label_map_version,
            "labels": len(self.classifier.label_map),
            "temperature": self.classifier.temperature,
            "masked_templates": int((~self._active).sum()),
            "redactor_version": self.classifier.redactor_version,
            "max_tokens": self.classifier.context.max_tokens,
            "top5_at_release": self.top5_at_release,
        }

    def agreement(self, served: Scores, shadow: Scores) -> float:
        """Share of the five best templates that both name."""
        return agreement(served, shadow)

    # What the route calls.

    def read(self, messages: Sequence[Message]) -> Conversation | None:
        """Redact and cut a conversation; None when nothing of it has a token."""
        redactions: Counter[str] = Counter()
        clean = []
        for message in messages:
            redaction = self._redactor.redact(message.text)
            redactions.update(redaction.counts)
            clean.append(replace(message, text=redaction.text))
        tokens = self.classifier.codec.encode(context_texts(clean, self.classifier.context))
        window = context(tokens, self._marks, self.classifier.context)
        return None if window is None else Conversation(window, dict(redactions))

    def rank(self, scores: Scores, leave_out: Collection[str] = ()) -> Ranking:
        """Calibrated probabilities over the templates that may be suggested."""
        label_map = self.classifier.label_map
        active = self._active & label_map.active_mask(leave_out) if leave_out else self._active
        if not active.any():
            return Ranking((), ())
        probabilities = _probabilities(scores.logits, self.classifier.temperature, active)
        # Stable, so that ties go to the lower label index.
        order = np.argsort(-probabilities, kind="stable")[: int(active.sum())]
        return Ranking(
            tuple([label_map.labels[index] for index in order.tolist()]),
            tuple(probabilities[order].tolist()),
        )

    def title(self, template_id: str) -> str:
        """What a template is called."""
        template = self.templates.get(template_id)
        return template.title if template is not None else template_id

    @property
    def templates(self) -> Mapping[str, Template]:
        """The templates as they are now."""
        if self._templates_now is None:
            return self.classifier.templates
        return self._templates_now()

    @property
    def top5_at_release(self) -> float | None:
        """Share of test messages whose template was among the first five, when it was trained."""
        found = self._settings.get("top5_at_release")
        return float(found) if isinstance(found, (int, float)) else None

    @property
    def _active(self) -> NDArray[np.bool_]:
        """Labels whose template is in use now; looked up once a second, for hundreds of them."""
        if time.monotonic() >= self._active_until:
            now = datetime.now(UTC)
            self._active_mask = self.classifier.label_map.active_mask(
                [key for key, template in self.templates.items() if is_retired(template, now)]
            )
            self._active_until = time.monotonic() + ACTIVE_S
        return self._active_mask


def _probabilities(
    logits: NDArray[np.float32], temperature: float, active: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """`models.metrics.masked_probabilities` of one row.

    In numpy, because this runs on the event loop: torch gives the interpreter away in each of its
    operations, and with a model computing in another thread it comes back late each time.
    """
    scaled = np.where(active, logits.astype(np.float64) / temperature, -np.inf)
    weights = np.exp(scaled - scaled.max())
    return np.asarray(weights / weights.sum())


def agreement(served: Scores, shadow: Scores) -> float:
    """Share of the five best templates that both name, whatever the labels of each are."""
    first, second = served.best(5), shadow.best(5)
    return len(first & second) / max(1, len(first))


def is_retired(template: Template, now: datetime) -> bool:
    """Whether a template has been withdrawn."""
    if template.retired_at is not None:
        return template.retired_at <= now
    return template.status == "retired"


def cohort(
    advocate_id: str | None, case_id: str, salt: str, share_per_10_000: int
) -> Literal["treatment", "holdout"]:
    """`holdout` for the pairs that see no suggestions, else `treatment`."""
    if advocate_id is None:
        return "treatment"
    is_out = is_held_out(advocate_id, case_id, salt, share_per_10_000)
    return "holdout" if is_out else "treatment"
