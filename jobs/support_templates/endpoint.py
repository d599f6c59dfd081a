"""The endpoint: suggestions for the conversation at hand, and what advocates made of them.

    POST /v1/support/suggest     the five most probable templates (Wyatte et al.)
    POST /v1/support/feedback    which one was chosen, kept before the answer is sent
    GET  /v1/support/lifecycle   whether it is time to train again

Predictions are logged in the holdout too, where nobody sees them. No log and no error holds what a
customer wrote.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from heliostat.runs.bundle import Bundle
from heliostat.serve.contract import Example, Page
from heliostat.serve.errors import ApiError, ErrorBody
from heliostat.serve.events import EventLog, RepeatedEvent
from heliostat.serve.service import Service, Version
from heliostat.storage import Location
from jobs.support_templates.config import Config, SuggestConfig
from jobs.support_templates.data.rows import Message, Template
from jobs.support_templates.data.schema import read_templates
from jobs.support_templates.endpoint_types import (
    ContextUsed,
    Feedback,
    SuggestAnswer,
    Suggestion,
    SuggestRequest,
)
from jobs.support_templates.events import FEEDBACK, HOLDOUT, PREDICTION
from jobs.support_templates.label_map import LabelMap
from jobs.support_templates.lifecycle import RetrainConfig, new_templates, out_of_map_rate
from jobs.support_templates.suggest import Conversation, Ranking, SuggestionModel, cohort

RANKING_KEPT = 20
"""Templates of a ranking that are logged."""

VIEW = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")


def endpoint(config: Config) -> SupportEndpoint:
    """The job's side of the endpoint."""
    return SupportEndpoint(config.suggest, EventLog(config.serve.events))


@dataclass(frozen=True)
class _Read:
    """What the route needs back besides the logits."""

    model: SuggestionModel
    conversation: Conversation


class SupportEndpoint:
    """Suggestions over HTTP."""

    title = "Reply suggestions for support advocates"
    prefix = "/v1/support"

    def __init__(self, config: SuggestConfig, log: EventLog) -> None:
        self._config, self._log = config, log
        self.page = Page(path="/suggest", examples=EXAMPLES, view=VIEW)

    def open(self, bundle: Bundle) -> SuggestionModel:
        """Load a version."""
        return SuggestionModel(bundle, self._templates())

    def _templates(self) -> Mapping[str, Template] | None:
        if self._config.templates is None:
            return None
        return read_templates(Location.of(self._config.templates))

    def router(self, service: Service) -> APIRouter:
        """The routes."""
        router = APIRouter()

        @router.post("/suggest", tags=["suggestions"])
        async def suggest(request: SuggestRequest) -> SuggestAnswer:
            """The most probable reply templates for a conversation."""
            return await self._suggest(service, request)

        @router.post(
            "/feedback",
            status_code=202,
            tags=["suggestions"],
            responses={
                409: {"model": ErrorBody, "description": "The suggestion has feedback already."}
            },
        )
        async def feedback(event: Feedback) -> dict[str, str]:
            """Which template was chosen. The first feedback for a suggestion counts."""
            return await service.aside(partial(self._keep, event))  # type: ignore[no-any-return]

        @router.get("/lifecycle", tags=["operation"])
        async def lifecycle() -> dict[str, Any]:
            """How far the templates have moved away from the newest version."""
            model = service.newest.model
            assert isinstance(model, SuggestionModel)
            label_map = model.classifier.label_map
            return await service.aside(partial(self._lifecycle, label_map))  # type: ignore[no-any-return]

        return router

    async def _suggest(self, service: Service, request: SuggestRequest) -> SuggestAnswer:
        began = time.perf_counter()
        messages = [
            Message(index, message.role, message.text)
            for index, message in enumerate(request.messages)
        ]
        read: dict[str, Conversation] = {}

        def prepare(version: Version) -> Conversation:
            assert isinstance(version.model, SuggestionModel)
            found = version.model.read(messages)
            if found is None:
                raise ApiError(422, "no message has any text", field="messages")
            read.setdefault(version.name, found)
            return found

        # One case stays with one version.
        answer = await service.predict(prepare, sticky_key=request.case_id)
        version, model = answer.version.name, answer.version.model
        assert isinstance(model, SuggestionModel)
        _check_used(request, model)
        group = cohort(
            request.advocate_id,
            request.case_id,
            self._config.holdout_salt,
            self._config.holdout_per_10_000,
        )
        used = request.used_template_ids if request.exclude_used else ()
        ranking = model.rank(answer.result, used)
        suggestions = [
            Suggestion(template_id=name, title=model.title(name), probability=p, rank=rank)
            for rank, (name, p) in enumerate(
                zip(ranking.template_ids[: request.k], ranking.probabilities, strict=False),
                start=1,
            )
            if p >= request.min_probability
        ]
        reason = _abstains(group, ranking, suggestions)
        suggestion_id = uuid.uuid4().hex
        self._log.append_later(
            PREDICTION,
            suggestion_id,
            _prediction(request, group, version, model, ranking, reason is not None),
        )
        conversation = read[version]
        window = conversation.window
        return SuggestAnswer(
            suggestion_id=suggestion_id,
            model_version=version,
            label_map_version=model.classifier.label_map.label_map_version,
            cohort=group,
            suggestions=[] if group == HOLDOUT else suggestions,
            abstained=reason is not None,
            abstain_reason=reason,
            context=ContextUsed(
                messages_total=window.messages_total,
                messages_used=window.messages_used,
                tokens_used=len(window.tokens),
                truncated=window.truncated,
            ),
            redactions=dict(conversation.redactions),
            latency_ms=1000 * (time.perf_counter() - began),
        )

    def _keep(self, event: Feedback) -> dict[str, str]:
        body = event.model_dump(exclude={"suggestion_id"})
        try:
            self._log.append(FEEDBACK, event.suggestion_id, body)
        except RepeatedEvent:
            raise ApiError(
                409, "this suggestion has feedback already; the first counts", field="suggestion_id"
            ) from None
        return {"status": "kept"}

    def _lifecycle(self, label_map: LabelMap) -> dict[str, Any]:
        settings = RetrainConfig()
        since = datetime.now(UTC) - timedelta(days=settings.window_days)
        chosen = [
            str(row.body["chosen_template_id"])
            for row in self._log.rows(FEEDBACK, since)
            if row.body["chosen_template_id"] is not None
        ]
        rate = out_of_map_rate(chosen, label_map) if chosen else None
        return {
            "window_days": settings.window_days,
            "selections": len(chosen),
            "out_of_map_rate": rate,
            "new_templates": dict(new_templates(chosen, label_map)),
            "should_retrain": rate is not None and rate > settings.max_out_of_map_rate,
        }


def _check_used(request: SuggestRequest, model: SuggestionModel) -> None:
    """Refuse template ids that neither the label map nor today's templates know."""
    for index, name in enumerate(request.used_template_ids):
        if name not in model.classifier.label_map and name not in model.templates:
            raise ApiError(422, "this template is not known", field=f"used_template_ids.{index}")


def _abstains(group: str, ranking: Ranking, suggestions: list[Suggestion]) -> Any:
    """Why nothing is suggested; None when something is."""
    if group == HOLDOUT:
        return "holdout"
    if not ranking.template_ids:
        return "all_masked"
    return None if suggestions else "low_confidence"


def _prediction(
    request: SuggestRequest,
    group: str,
    version: str,
    model: SuggestionModel,
    ranking: Ranking,
    abstained: bool,
) -> dict[str, object]:
    return {
        "case_id": request.case_id,
        "advocate_id": request.advocate_id,
        "cohort": group,
        "model_version": version,
        "label_map_version": model.classifier.label_map.label_map_version,
        "template_ids": list(ranking.template_ids[:RANKING_KEPT]),
        "probabilities": list(ranking.probabilities[:RANKING_KEPT]),
        "abstained": abstained,
    }


EXAMPLES = (
    Example(
        "A payment that was declined",
        {
            "case_id": "example-1",
            "messages": [
                {"role": "customer", "text": "Hi, my card payment keeps being declined at the shop"}
            ],
        },
    ),
    Example(
        "A conversation with details already given",
        {
            "case_id": "example-2",
            "messages": [
                {"role": "customer", "text": "hello"},
                {"role": "system", "text": "An advocate has joined the chat."},
                {"role": "advocate", "text": "Hello, thanks for reaching out. How can I help you?"},
                {"role": "customer", "text": "a transfer to my sister never arrived"},
                {"role": "customer", "text": "it was $250 on Monday, my mail is ann@example.org"},
            ],
            "k": 5,
        },
    ),
)
