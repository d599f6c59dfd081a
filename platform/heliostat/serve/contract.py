"""What a job gives to be served, and what its routes get.

A job's `endpoint.py` has a function `endpoint(config) -> Endpoint`. Everything that the model does
is blocking and plain: the platform calls it in a thread, in batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from fastapi import APIRouter

    from heliostat.runs.bundle import Bundle
    from heliostat.serve.service import Service, Version

Item = TypeVar("Item")
Result = TypeVar("Result")


class Model(Protocol[Item, Result]):
    """One version of a model, loaded."""

    def cost(self, item: Item) -> int:
        """What an item adds to a batch, in tokens; at least 1. Must not raise."""
        ...

    def predict(self, items: Sequence[Item]) -> Sequence[Result]:
        """One result for each item, in order. May raise for a bad item; it is then found alone."""
        ...

    def example(self) -> Item:
        """An item to warm up with."""
        ...

    def about(self) -> Mapping[str, object]:
        """What there is to know of it; JSON."""
        ...

    def agreement(self, served: Result, shadow: Result) -> float:
        """How far two versions agree on an item, 0 to 1, for the report on shadow traffic."""
        ...


@runtime_checkable
class Queueing(Protocol):
    """A model that keeps a queue of its own beside the batches, such as a language model's."""

    @property
    def waiting(self) -> int:
        """Requests in it."""
        ...


@dataclass(frozen=True)
class Example:
    """A request that the page offers to try."""

    title: str
    body: Mapping[str, object]


@dataclass(frozen=True)
class Form:
    """How a person writes a request without writing JSON."""

    label: str
    """What to write, in one line."""
    write: str
    """JavaScript: the body of `function (request)` that gives a request as text."""
    read: str
    """JavaScript: the body of `function (text, request)` that gives the request that a text means,
    with whatever else the last one had; throws an `Error` that says what is wrong."""


@dataclass(frozen=True)
class Page:
    """What the page for people shows besides the card."""

    path: str
    """The route that its form calls with POST, below the prefix."""
    examples: tuple[Example, ...]
    view: str
    """JavaScript: the body of `function (request, answer, element)` that shows an answer."""
    purpose: str = ""
    """What the model does, in a sentence or two."""
    form: Form | None = None
    """None: the form takes JSON."""


class Endpoint(Protocol):
    """A job's side of an endpoint; made once in every replica."""

    title: str
    prefix: str
    """Begins every path of the API, such as `/v1/support`."""
    page: Page

    def open(self, bundle: Bundle) -> Model[Any, Any]:
        """Load a version; raises `BundleError` when it cannot be served."""
        ...

    def router(self, service: Service) -> APIRouter:
        """The routes of the API, without the prefix."""
        ...

    def common_router(self, service: Service) -> APIRouter | None:
        """Routes of an API that others have made, at paths of their own; None: none."""
        ...


@dataclass(frozen=True)
class Answer(Generic[Result]):
    """What a version of the model says."""

    result: Result
    version: Version
    """The one that said it; by now it may have left the lineup."""
