"""The endpoint behind HAProxy, with replicas that scale: the same answers by one key."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from served_endpoint import Served, conversation, serving
from support_bundle import write_support_bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("haproxy")
    versions = {
        name: write_support_bundle(folder / name, seed) for name, seed in (("one", 1), ("two", 2))
    }
    words = [
        "serve.http.haproxy=true",
        "serve.replicas=[1,2]",
        "serve.target_ongoing_requests=1",
        "serve.cpus_per_replica=0.5",
        "serve.limits.requests_per_minute=null",
    ]
    with serving(folder, versions, *words, "--bundle", "one") as running:
        yield running


def test_haproxy_is_what_listens(served: Served) -> None:
    port = int(served.url.rpartition(":")[2])
    owners = set()
    for one in psutil.net_connections("tcp"):
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.pid:
            # A process that HAProxy replaces goes meanwhile.
            with contextlib.suppress(psutil.NoSuchProcess):
                owners.add(psutil.Process(one.pid).name())
    assert owners == {"haproxy"}


def test_answers_and_errors_are_those_of_the_other_proxy(served: Served) -> None:
    assert served.suggest(k=3)["model_version"] == served.versions["one"]
    assert served.ask("/healthz", key=None)[0] == 200
    assert served.ask("/v1/support/suggest", conversation("x"), key=None)[0] == 401
    assert served.ask("/v1/support/suggest", conversation("x"), key="hs_wrong")[0] == 403
    status, answer = served.ask("/v1/support/suggest", b"x" * 2_000_001)
    assert (status, answer["error"]["code"]) == (413, "too_large")
    assert "x-request-id" in {name.lower() for name in served.headers}


def test_a_swap_behind_haproxy_drops_no_request_and_replicas_follow_the_load(
    served: Served,
) -> None:
    stop = threading.Event()
    seen: list[int] = []
    names: set[str] = set()

    def client(number: int) -> None:
        while not stop.is_set():
            seen.append(served.ask("/v1/support/suggest", conversation(f"a fee of {number}"))[0])

    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(client, number) for number in range(6)]
        try:
            assert served.deploy("two").returncode == 0
            until = time.monotonic() + 150
            while len(names) < 2 and time.monotonic() < until:
                names.add(served.ask("/healthz", key=None)[1]["replica"])
                time.sleep(0.2)
        finally:
            stop.set()
        for done in clients:
            done.result(60)
    assert set(seen) == {200}
    assert len(names) == 2
    assert served.suggest()["model_version"] == served.versions["two"]


def test_more_than_haproxy_lets_through_is_refused_with_what_to_set(served: Served) -> None:
    before = served.suggest()["model_version"]
    done = served.deploy("one", settings=["serve.limits.queue=256"])
    assert done.returncode == 1
    assert "HELIOSTAT_MOST_IN_FLIGHT=272" in done.stderr, done.stderr
    assert served.suggest()["model_version"] == before
