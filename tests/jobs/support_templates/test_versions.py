"""What a replica does with a lineup: loads it beside the old one, keeps what it has, or refuses."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support_bundle import write_support_bundle

from heliostat.errors import BundleError
from heliostat.serve.app import build_app
from heliostat.serve.batcher import BatchLimits
from heliostat.serve.config import OFF, ServeConfig
from heliostat.serve.events import EventLog
from heliostat.serve.lineup import Lineup, Share
from heliostat.serve.service import Service
from heliostat.serve.telemetry import Telemetry
from jobs.support_templates.config import SuggestConfig
from jobs.support_templates.endpoint import SupportEndpoint
from jobs.support_templates.suggest import SuggestionModel

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


def test_until_a_version_has_computed_once_every_route_says_that_it_is_being_loaded(
    endpoint: SupportEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_support_bundle(tmp_path / "one", 1)
    during: list[int] = []

    async def story() -> None:
        service, telemetry = Service(endpoint, LIMITS, Telemetry("test")), Telemetry("test")
        app = build_app(endpoint, service, ServeConfig(keys=OFF), telemetry, lambda: 1, "only")
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://replica") as client:
            loop, is_loaded = asyncio.get_running_loop(), False
            predict = SuggestionModel.predict

            def watched(model: SuggestionModel, items: Sequence[Any]) -> Any:
                # In the thread that loads: the replica answers, and is not ready.
                if not is_loaded:
                    asked = asyncio.run_coroutine_threadsafe(client.get("/healthz"), loop)
                    during.append(asked.result(30).status_code)
                return predict(model, items)

            monkeypatch.setattr(SuggestionModel, "predict", watched)
            body = {"case_id": "c", "messages": [{"role": "customer", "text": "hello"}]}
            refused = await client.post("/v1/support/suggest", json=body)
            assert refused.status_code == 503
            assert refused.json()["error"]["message"] == "the model is being loaded"
            assert int(refused.headers["retry-after"]) >= 1
            await service.apply(Lineup((Share(str(tmp_path / "one")),)))
            is_loaded = True
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.post("/v1/support/suggest", json=body)).status_code == 200

    play(story())
    assert during
    assert set(during) == {503}
