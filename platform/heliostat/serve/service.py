"""The versions of a model in one replica: loading, choosing, computing, swapping, shadowing.

A new lineup is loaded aside, warmed up and then takes the place of the old one in one assignment:
requests that are under way keep the version they began with. When anything of it cannot be loaded,
the old lineup stays and the failure is kept to be shown. Only the event loop changes anything here.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from heliostat.errors import HeliostatError
from heliostat.runs.bundle import Bundle, load_bundle
from heliostat.serve.batcher import Batcher, BatchLimits
from heliostat.serve.contract import Answer, Endpoint, Model, Queueing
from heliostat.serve.durations import Durations
from heliostat.serve.errors import ApiError
from heliostat.serve.lineup import Lineup
from heliostat.serve.passage import note_version
from heliostat.serve.shadow import ShadowReport
from heliostat.serve.telemetry import Telemetry

logger = logging.getLogger(__name__)

PREPARED_AT_ONCE = 1000
"""Characters that are prepared on the event loop, about 2 ms; more go to a thread, which costs."""
ON_LOOP_S = 0.02
"""Longest batch that is computed on the event loop, which can refuse nobody meanwhile."""
SHADOW_WAITING = 4
"""A copy for the shadow is dropped when this many wait for it already."""


@dataclass
class Count:
    """How many are inside a block now."""

    count: int = 0

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1


@dataclass(frozen=True, eq=False)
class Version:
    """A loaded version."""

    name: str
    """The version of the bundle, which takes a while to compute."""
    bundle: Bundle
    model: Model[Any, Any]
    batcher: Batcher[Any, Any]
    own_queue: Queueing | None
    """Of a model that has one."""
    preparing: Count = field(default_factory=Count)
    """Requests on their way to the batcher."""


@dataclass(frozen=True)
class _Loaded:
    lineup: Lineup
    versions: dict[str, Version]
    """By bundle, as the lineup names them."""

    def chosen(self, sticky_key: str) -> Version:
        return self.versions[self.lineup.versions[self.lineup.place(sticky_key)].bundle]

    @property
    def shadow(self) -> Version | None:
        return self.versions[self.lineup.shadow] if self.lineup.shadow else None


class Service:
    """What the routes of a job call."""

    def __init__(self, endpoint: Endpoint, limits: BatchLimits, telemetry: Telemetry) -> None:
        self._endpoint, self._limits, self._telemetry = endpoint, limits, telemetry
        # One thread for the model: its operations use the replica's CPUs themselves.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        # Three more: neither a slow database nor a load of a version keeps requests waiting.
        self._preparing = ThreadPoolExecutor(2, thread_name_prefix="prepare")
        self._aside = ThreadPoolExecutor(2, thread_name_prefix="aside")
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._loaded: _Loaded | None = None
        self._failure: str | None = None
        self._last_refusal: str | None = None
        self._settled: str | None = None
        """Id of the newest lineup that was taken or refused."""
        self._changing = asyncio.Lock()
        self._shadows: set[asyncio.Task[None]] = set()
        self.shadow_report = ShadowReport()

    async def predict(
        self,
        prepare: Callable[[Version], Any],
        characters: int,
        *,
        sticky_key: str | None = None,
    ) -> Answer[Any]:
        """The answer of the version that the key belongs to.

        Args:
            prepare: makes the model's item from what the route was given; called for each version
                that gets the item, in a thread where it would keep others waiting.
            characters: how much there is to prepare.
            sticky_key: requests with the same key get the same version; None: any.

        Raises:
            ApiError: 503 when too many requests wait.
        """
        loaded = self._require()
        version = _chosen(loaded, sticky_key)
        self.admit(version)
        if characters <= PREPARED_AT_ONCE:
            item = prepare(version)
        else:
            with version.preparing:
                item = await self._prepared(partial(prepare, version))
        result = await version.batcher.submit(item, version.model.cost(item))
        if loaded.shadow is not None:
            self._copy_to(loaded.shadow, prepare, result)
        return Answer(result, version)

    def admit(self, version: Version) -> None:
        """Refuse a request to a version for which too many wait; raises `ApiError` 503."""
        version.batcher.admit(version.preparing.count)

    async def submit(self, version: Version, item: Any) -> Any:
        """What a version says of an item of a request that was admitted, computed with those that
        wait beside it.
        """
        return await version.batcher.submit(item, version.model.cost(item))

    def refusal_s(self) -> float | None:
        """Seconds after which to come again, where every version would refuse; else None."""
        loaded = self._require()
        versions = [loaded.versions[share.bundle] for share in loaded.lineup.versions]
        found = [one.batcher.refusal_s(one.preparing.count) for one in versions]
        return min((s for s in found if s is not None), default=None) if all(found) else None

    async def aside(self, work: Callable[[], Any]) -> Any:
        """Run something that takes a while in a thread, so that the event loop stays free."""
        return await asyncio.get_running_loop().run_in_executor(self._aside, work)

    async def _prepared(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._preparing, work)

    @property
    def telemetry(self) -> Telemetry:
        """The metrics of this replica."""
        return self._telemetry

    @property
    def thread(self) -> ThreadPoolExecutor:
        """The one thread that models compute in."""
        return self._thread

    @property
    def versions(self) -> list[Version]:
        """Those of the lineup, in order."""
        loaded = self._require()
        return [loaded.versions[share.bundle] for share in loaded.lineup.versions]

    def version_for(self, sticky_key: str | None = None) -> Version:
        """The version that a key belongs to; None: any, by the shares of the lineup."""
        return _chosen(self._require(), sticky_key)

    @property
    def newest(self) -> Version:
        """The last version of the lineup."""
        loaded = self._require()
        return loaded.versions[loaded.lineup.versions[-1].bundle]

    def expect(self) -> None:
        """Another lineup comes, and that the last one was refused does not count any more."""
        self._failure = None

    async def apply(self, lineup: Lineup) -> None:
        """Change the lineup; raises what loading raised, after which the old one still answers."""
        async with self._changing:
            loaded = self._loaded
            known = loaded.versions if loaded is not None else {}
            loop = asyncio.get_running_loop()
            try:
                versions = {
                    bundle: await loop.run_in_executor(
                        self._loading, self._open, bundle, known.get(bundle)
                    )
                    for bundle in lineup.bundles
                }
            except Exception as error:
                self._failure = self._last_refusal = _sentence(error)
                self._settled = lineup.id
                raise
            if loaded is None or lineup.shadow != loaded.lineup.shadow:
                self.shadow_report = ShadowReport()
            self._failure = None
            if loaded is not None and lineup != loaded.lineup:
                self._last_refusal = None
            self._loaded, self._settled = _Loaded(lineup, versions), lineup.id

    def status(self) -> dict[str, Any]:
        """The lineup that answers, and why the newest one does not, if so; JSON.

        `lineup` is the id of the newest lineup that was taken or refused, and `refused_lineup` is
        about it; `last_refusal` stays when the one before was given back, until another takes its
        place.
        """
        loaded = self._require()
        shadow = loaded.shadow
        return {
            "versions": [
                {
                    "version": loaded.versions[share.bundle].name,
                    "bundle": share.bundle,
                    "percent": share.percent,
                    "about": dict(loaded.versions[share.bundle].model.about()),
                }
                for share in loaded.lineup.versions
            ],
            "shadow": shadow.name if shadow is not None else None,
            "lineup": self._settled,
            "refused_lineup": self._failure,
            "last_refusal": self._last_refusal,
        }

    @property
    def waiting(self) -> int:
        """Requests that wait for the model."""
        versions = {} if self._loaded is None else self._loaded.versions
        return sum(
            one.batcher.waiting + (one.own_queue.waiting if one.own_queue is not None else 0)
            for one in versions.values()
        )

    def _require(self) -> _Loaded:
        if self._loaded is None:
            raise ApiError(503, "the model is being loaded", retry_after_s=5)
        return self._loaded

    def _open(self, bundle: str, known: Version | None) -> Version:
        """Load a version and let it compute once; in a thread.

        Args:
            bundle: its place.
            known: what was loaded from there before; kept unless there is something else by now.
        """
        found = load_bundle(bundle)
        version = found.version
        if known is not None and known.name == version:
            return known
        model = self._endpoint.open(found)
        example = model.example()
        full = min(self._limits.items, max(1, self._limits.tokens // model.cost(example)))
        model.predict([example] * full)
        durations = Durations()
        for size in (full, 1):
            began = time.perf_counter()
            model.predict([example] * size)
            durations.note(size * model.cost(example), time.perf_counter() - began)
        # A model with a queue of its own computes steps in the thread, which batches must not meet.
        own_queue = model if isinstance(model, Queueing) else None
        on_loop_s = ON_LOOP_S if own_queue is None else 0.0
        batcher = Batcher(
            model.predict,
            replace(self._limits, on_loop_s=on_loop_s),
            self._thread,
            partial(self._telemetry.batch, version=version),
            durations,
        )
        return Version(version, found, model, batcher, own_queue)

    def _copy_to(self, shadow: Version, prepare: Callable[[Version], Any], served: Any) -> None:
        if shadow.preparing.count + shadow.batcher.waiting >= SHADOW_WAITING:
            self.shadow_report.dropped += 1
            self._telemetry.shadow("dropped")
            return
        task = asyncio.create_task(self._compare(shadow, prepare, served))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _compare(
        self, shadow: Version, prepare: Callable[[Version], Any], served: Any
    ) -> None:
        try:
            with shadow.preparing:
                item = await self._prepared(partial(prepare, shadow))
            result = await shadow.batcher.submit(item, shadow.model.cost(item))
            agreement = shadow.model.agreement(served, result)
            self.shadow_report.add(agreement)
            self._telemetry.shadow("compared", agreement)
        except Exception as error:
            # Nobody waits for a shadow's answer.
            self.shadow_report.failed += 1
            self._telemetry.shadow("failed")
            logger.warning("the shadow %s failed: %s", shadow.name, type(error).__name__)


def _chosen(loaded: _Loaded, sticky_key: str | None) -> Version:
    """The version of a request; None: any."""
    version = loaded.chosen(sticky_key or uuid.uuid4().hex)
    note_version(version.name)
    return version


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, HeliostatError) else type(error).__name__
