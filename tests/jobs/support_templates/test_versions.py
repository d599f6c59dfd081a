"""What a replica does with a lineup: loads it beside the old one, keeps what it has, or refuses."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from support_bundle import write_support_bundle

from heliostat.errors import BundleError
from heliostat.serve.batcher import BatchLimits
from heliostat.serve.events import EventLog
from heliostat.serve.lineup import Lineup, Share
from heliostat.serve.service import Service
from heliostat.serve.telemetry import Telemetry
from jobs.support_templates.config import SuggestConfig
from jobs.support_templates.endpoint import SupportEndpoint

LIMITS = BatchLimits(items=4, tokens=1000, wait_s=0, queue=8)


@pytest.fixture
def endpoint(tmp_path: Path) -> SupportEndpoint:
    return SupportEndpoint(SuggestConfig(), EventLog(str(tmp_path / "events.db")))


def play(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


def test_a_place_with_something_else_in_it_by_now_is_loaded_again(
    endpoint: SupportEndpoint, tmp_path: Path
) -> None:
    first = write_support_bundle(tmp_path / "here", 1)
    lineup = Lineup((Share(str(tmp_path / "here")),))

    async def story() -> None:
        service = Service(endpoint, LIMITS, Telemetry("test"))
        await service.apply(lineup)
        kept = service.newest
        assert kept.name == first
        await service.apply(lineup)
        assert service.newest is kept
        shutil.rmtree(tmp_path / "here")
        second = write_support_bundle(tmp_path / "here", 2)
        await service.apply(lineup)
        assert service.newest.name == second != first

    play(story())


def test_why_a_lineup_was_refused_is_told_until_another_takes_its_place(
    endpoint: SupportEndpoint, tmp_path: Path
) -> None:
    for name, seed, redactor in (("one", 1, None), ("two", 2, None), ("broken", 3, "0")):
        more = {} if redactor is None else {"redactor_version": redactor}
        write_support_bundle(tmp_path / name, seed, **more)  # type: ignore[arg-type]
    one, two, broken = (Lineup((Share(str(tmp_path / n)),)) for n in ("one", "two", "broken"))

    async def story() -> None:
        service = Service(endpoint, LIMITS, Telemetry("test"))
        await service.apply(one)
        with pytest.raises(BundleError):
            await service.apply(broken)
        status = service.status()
        assert "redactor 0" in status["refused_lineup"]
        assert status["last_refusal"] == status["refused_lineup"]
        await service.apply(one)
        status = service.status()
        assert status["refused_lineup"] is None
        assert "redactor 0" in status["last_refusal"]
        await service.apply(two)
        assert service.status()["last_refusal"] is None

    play(story())
