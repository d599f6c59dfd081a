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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from heliostat.runs.bundle import Bundle
from heliostat.serve.contract import Example, Form, Page
from heliostat.serve.errors import ApiError, ErrorBody
from heliostat.serve.events import EventLog, EventsAway, RepeatedEvent
from heliostat.serve.service import Service, Version
from heliostat.serve.watched import Watched
from heliostat.storage import Location
from jobs.support_templates.config import Config, SuggestConfig
from jobs.support_templates.data.rows import Message, Template
from jobs.support_templates.data.schema import read_templates
from jobs.support_templates.endpoint_types import (
    ContextUsed,
    Feedback,
    Kept,
    LifecycleAnswer,
    SuggestAnswer,
    Suggestion,
    SuggestRequest,
)
from jobs.support_templates.events import FEEDBACK, HOLDOUT, PREDICTION
from jobs.support_templates.lifecycle import RetrainConfig
from jobs.support_templates.lifecycle_report import lifecycle_report
from jobs.support_templates.suggest import Conversation, Ranking, SuggestionModel, cohort

TEMPLATES_EVERY_S = 10.0
"""A template that is retired in the table is masked after this time, without another deployment."""
RANKING_KEPT = 20
"""Templates of a ranking that are logged."""

_HERE = Path(__file__).parent
VIEW = (_HERE / "page.js").read_text(encoding="utf-8")
FORM = Form(
    label="Conversation, a message a line: customer: ..., advocate: ... or system: ...",
    write=(_HERE / "form_write.js").read_text(encoding="utf-8"),
    read=(_HERE / "form_read.js").read_text(encoding="utf-8"),
)
PURPOSE = (
    "Reads a support conversation and says which of the reply templates an advocate most probably "
    "needs next. It writes nothing to customers: an advocate sees the suggestions and chooses."
)


def endpoint(config: Config) -> SupportEndpoint:
    """The job's side of the endpoint."""
    return SupportEndpoint(config.suggest, EventLog(config.serve.events), config.serve.device)


@dataclass(frozen=True)
class _Read:
    """What the route needs back besides the logits."""

    model: SuggestionModel
    conversation: Conversation


class SupportEndpoint:
    """Suggestions over HTTP."""

    title = "Reply suggestions for support advocates"
    prefix = "/v1/support"

    def __init__(self, config: SuggestConfig, log: EventLog, device: str = "cpu") -> None:
        self._config, self._log, self._device = config, log, device
        self._templates: Callable[[], Mapping[str, Template]] | None = None
        if config.templates is not None:
            read = partial(read_templates, Location.of(config.templates))
            self._templates = Watched(read, TEMPLATES_EVERY_S, "the table of templates")
        self.page = Page("/suggest", EXAMPLES, VIEW, purpose=PURPOSE, form=FORM)

    def open(self, bundle: Bundle) -> SuggestionModel:
        """Load a version, and let it read and rank once."""
        model = SuggestionModel(
            bundle,
            self._templates,
            temperature=self._config.temperature,
            max_tokens=self._config.max_tokens,
            device=self._device,
        )
        found = model.read([Message(0, "customer", "Hello, my name is Ann. How do I pay?")])
        assert found is not None
        model.rank(model.predict([found])[0])
        return model

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
        async def feedback(event: Feedback) -> Kept:
            """Which template was chosen. The first feedback for a suggestion counts."""
            return await service.aside(partial(self._keep, event))  # type: ignore[no-any-return]

        @router.get("/lifecycle", tags=["operation"])
        async def lifecycle() -> LifecycleAnswer:
            """How far the templates have moved away from the newest version."""
            return await service.aside(partial(self._lifecycle, service.newest))  # type: ignore[no-any-return]

        return router

    def common_router(self, service: Service) -> None:
        """None."""

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
        answer = await service.predict(
            prepare,
            sum(len(message.text) for message in messages),
            sticky_key=request.case_id,
        )
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
        is_given = "min_probability" in request.model_fields_set
        floor = request.min_probability if is_given else self._config.min_probability
        suggestions = [
            Suggestion(template_id=name, title=model.title(name), probability=p, rank=rank)
            for rank, (name, p) in enumerate(
                zip(ranking.template_ids[: request.k], ranking.probabilities, strict=False),
                start=1,
            )
            if p >= floor
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

    def _keep(self, event: Feedback) -> Kept:
        body = event.model_dump(exclude={"suggestion_id"})
        try:
            self._log.append(FEEDBACK, event.suggestion_id, body)
        except RepeatedEvent:
            raise ApiError(
                409, "this suggestion has feedback already; the first counts", field="suggestion_id"
            ) from None
        except EventsAway:
            raise ApiError(503, "feedback cannot be kept now", retry_after_s=5) from None
        return Kept()

    def _lifecycle(self, version: Version) -> LifecycleAnswer:
        model = version.model
        assert isinstance(model, SuggestionModel)
        try:
            found = lifecycle_report(
                self._log,
                model.classifier.label_map,
                model_version=version.name,
                top5_at_release=model.top5_at_release,
                now=datetime.now(UTC),
                config=RetrainConfig(),
            )
        except EventsAway:
            raise ApiError(503, "the events cannot be read now", retry_after_s=5) from None
        return LifecycleAnswer.model_validate(found)


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
