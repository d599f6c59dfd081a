"""A version of a language model as an endpoint opens it: its codec, and an engine for each variant.

A variant is a way of running the same weights, such as a position scheme; most models have one,
None. The engine of a variant is made when it is first asked for and shares the model's thread with
all others, so that two never compute at the same time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from heliostat.serve.errors import ApiError
from heliostat.serve.generation.config import GenerationConfig
from heliostat.serve.generation.contract import Codec, LanguageModel
from heliostat.serve.generation.core import EngineCore
from heliostat.serve.generation.engine import Engine, Observer
from heliostat.serve.generation.request import Finished, Request, Sampling

SELF_TEST = Request(prompt=(0,), max_tokens=1, sampling=Sampling(temperature=0.0))


@dataclass(frozen=True)
class NamedModel:
    """What a job says of its model."""

    name: str
    """What clients call it."""
    codec: Codec
    build: Callable[[Hashable], LanguageModel]
    """Makes the model of a variant with a pool of its own; raises `ValueError` for one that there
    is not."""
    about: Mapping[str, object]
    """What there is to know of it; JSON."""
    extra: object = None
    """For the job's own routes."""


@dataclass(frozen=True)
class ModelLimits:
    """What a request must keep to, in any variant."""

    vocab_size: int
    longest: int
    """Most tokens of a request, those that it wants included."""
    bytes_per_token: int
    """Of the cache, in the first variant."""


class ServedLanguageModel:
    """A `Model` of an endpoint whose routes use its engines instead of batches."""

    def __init__(self, named: NamedModel, config: GenerationConfig) -> None:
        self.named, self._config = named, config
        self._engines: OrderedDict[Hashable, Engine] = OrderedDict()
        self._first: EngineCore | None = None
        self._limits: ModelLimits | None = None

    @property
    def name(self) -> str:
        """What clients call it."""
        return self.named.name

    @property
    def codec(self) -> Codec:
        """Its text."""
        return self.named.codec

    def engine(
        self,
        thread: ThreadPoolExecutor,
        variant: Hashable = None,
        observer: Observer | None = None,
    ) -> Engine:
        """The engine of a variant.

        Args:
            thread: what steps run in; the same for every call.
            variant: a way of running the model.
            observer: hears what the engine does, if it is made by this call.

        Raises:
            ApiError: 503 when there are as many engines as there may be, all of them at work.
            ValueError: there is no such variant.
        """
        if variant not in self._engines:
            self._make_room()
            core = self._first if variant is None and self._first else self._core(variant)
            self._engines[variant] = Engine(core, thread, self._config.queue, observer)
            self._first = None
        self._engines.move_to_end(variant)
        return self._engines[variant]

    @property
    def limits(self) -> ModelLimits:
        """Known without an engine: those there are may all be at work in other variants."""
        if self._limits is None:
            self._first = self._first or self._core(None)
            core = self._first
            self._limits = ModelLimits(core.vocab_size, core.longest, core.bytes_per_token)
        return self._limits

    @property
    def queue(self) -> int:
        """Requests that may wait for an engine."""
        return self._config.queue

    @property
    def engines(self) -> Mapping[Hashable, Engine]:
        """Those that exist."""
        return self._engines

    @property
    def waiting(self) -> int:
        """Requests that no engine has admitted yet."""
        return sum(engine.waiting for engine in self._engines.values())

    def cost(self, item: Request) -> int:
        """What a request of the self test adds."""
        return len(item.prompt) + item.max_tokens

    def predict(self, items: Sequence[Request]) -> Sequence[str]:
        """The self test before a version answers: complete requests, with nobody beside them."""
        self._first = self._first or self._core(None)
        return [_complete(self._first, item) for item in items]

    def example(self) -> Request:
        """One token."""
        return SELF_TEST

    def about(self) -> Mapping[str, object]:
        """What there is to know of it; JSON."""
        return {"name": self.name, **self.named.about}

    def agreement(self, served: str, shadow: str) -> float:
        """Completions are not copied to a shadow, so there is nothing to compare."""
        return float(served == shadow)

    def _core(self, variant: Hashable) -> EngineCore:
        return EngineCore(
            self.named.build(variant),
            self.codec,
            chunk=self._config.prefill_chunk,
            reuses_prefixes=self._config.prefix_reuse,
        )

    def _make_room(self) -> None:
        if len(self._engines) < self._config.variants:
            return
        for variant, engine in self._engines.items():
            if engine.is_idle:
                del self._engines[variant]
                return
        raise ApiError(503, "the model is busy being run in other ways", retry_after_s=1)


def _complete(core: EngineCore, request: Request) -> str:
    core.add(request)
    while core.has_work:
        for _, event in core.step():
            if isinstance(event, Finished):
                if event.error is not None:
                    raise RuntimeError(f"the self test failed: {event.error}")
                return event.reason
    raise AssertionError("a request ends")
