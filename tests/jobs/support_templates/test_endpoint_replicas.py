"""The endpoint with two replicas behind HTTPS: what has to hold over all of them."""

from __future__ import annotations

import re
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from certificates import write_certificate
from served_endpoint import Served, conversation, serving
from support_bundle import write_support_bundle

PER_MINUTE = 240


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("replicas")
    versions = {
        name: write_support_bundle(folder / name, seed) for name, seed in (("one", 1), ("two", 2))
    }
    write_certificate(folder, "suggestions.example.com")
    words = [
        "serve.replicas=2",
        "serve.cpus_per_replica=0.5",
        f"serve.limits.requests_per_minute={PER_MINUTE}",
        "serve.http.access_log=true",
        "serve.http.tls_key=key.pem",
        "serve.http.tls_certificate=chain.pem",
    ]
    with serving(folder, versions, *words, "--bundle", "one") as running:
        running.context = ssl.create_default_context(cafile=str(folder / "chain.pem"))
        running.context.check_hostname = False
        yield running


def replicas_and_versions(served: Served) -> set[tuple[str, str]]:
    """All that answer, once both do: HAProxy knows a replica that changed a second later."""
    end, found = time.monotonic() + 30, set[tuple[str, str]]()
    while len({name for name, _ in found}) < 2:
        assert time.monotonic() < end, found
        for _ in range(24):
            _, health = served.ask("/healthz", key=None)
            found.add((health["replica"], health["versions"][0]["version"]))
    return found


def test_it_speaks_https_and_a_new_lineup_is_in_every_replica_when_deploy_returns(
    served: Served,
) -> None:
    assert served.url.startswith("https://127.0.0.1:")
    before = replicas_and_versions(served)
    assert {version for _, version in before} == {served.versions["one"]}
    done = served.deploy("two")
    assert done.returncode == 0, done.stderr
    after = replicas_and_versions(served)
    assert {name for name, _ in after} == {name for name, _ in before}
    assert {version for _, version in after} == {served.versions["two"]}


def test_a_lineup_that_cannot_be_loaded_is_taken_back_from_every_replica(served: Served) -> None:
    assert served.deploy("two").returncode == 0
    before = replicas_and_versions(served)
    write_support_bundle(served.folder / "broken", 9, redactor_version="0")
    done = served.deploy("broken")
    assert done.returncode == 1, done.stderr
    assert "what ran before goes on answering" in done.stderr
    assert replicas_and_versions(served) == before


def test_of_the_same_feedback_sent_at_once_to_all_replicas_one_is_kept(served: Served) -> None:
    suggestion = served.suggest()["suggestion_id"]

    def send(number: int) -> int:
        event = {
            "suggestion_id": suggestion,
            "chosen_template_id": f"choice.{number}",
            "selection_time_ms": number,
        }
        return served.ask("/v1/support/feedback", event)[0]

    with ThreadPoolExecutor(12) as pool:
        assert Counter(pool.map(send, range(24))) == {202: 1, 409: 23}
    # A prediction is written after it was answered.
    end, unknown = time.monotonic() + 30, 1
    while unknown:
        assert time.monotonic() < end
        _, lifecycle = served.ask("/v1/support/lifecycle")
        unknown = lifecycle["unknown_suggestions"]
    assert lifecycle["selections"] == 1


def test_a_key_comes_is_limited_over_all_replicas_and_goes_without_a_deployment(
    served: Served,
) -> None:
    made = served.heliostat("serve", "key", "greedy")
    greedy = made.stdout.split()[0]

    def ask(_: int = 0) -> int:
        return served.ask("/v1/support/model", key=greedy)[0]

    def until(status: int) -> None:
        end = time.monotonic() + 30
        while Counter(ask() for _ in range(8)) != {status: 8}:
            assert time.monotonic() < end
            time.sleep(0.5)

    # Each replica reads the file at its own time; until both have, no more is asked than is free.
    end, know = time.monotonic() + 30, set[str]()
    while len(know) < 2:
        assert time.monotonic() < end
        time.sleep(120 / PER_MINUTE)
        status, model = served.ask("/v1/support/model", key=greedy)
        if status == 200:
            know.add(model["replica"])
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        found = Counter(pool.map(ask, range(2 * PER_MINUTE)))
    seconds = time.monotonic() - began
    assert set(found) == {200, 429}
    assert PER_MINUTE * 0.6 < found[200] < PER_MINUTE * (1 + seconds / 60)
    while ask() != 429:
        pass
    assert int(served.headers["retry-after"]) >= 1
    assert served.ask("/v1/support/model")[0] == 200
    served.heliostat("serve", "key", "greedy", "--remove")
    until(403)


def test_replicas_are_replaced_without_dropping_a_request(served: Served) -> None:
    before = {name for name, _ in replicas_and_versions(served)}
    served.settings = [*served.settings, "serve.limits.body_mb=0.5"]
    with ThreadPoolExecutor(1) as pool:
        deployed = pool.submit(served.deploy, "two")
        seen = Counter[int]()
        while not deployed.done():
            seen[served.ask("/v1/support/suggest", conversation("a fee"))[0]] += 1
            time.sleep(0.3)
    assert deployed.result().returncode == 0, deployed.result().stderr
    assert set(seen) == {200}
    assert not before & {name for name, _ in replicas_and_versions(served)}
    assert served.ask("/v1/support/suggest", b"x" * 600_000)[0] == 413


def test_no_log_holds_a_key_or_what_a_client_wrote(served: Served) -> None:
    written = "zanzibar-quokka"
    served.suggest(f"my {written} was declined")
    served.ask("/v1/support/suggest", {"case_id": written, "messages": written})
    served.ask("/v1/support/suggest", conversation(written), key="hs_not-a-key")
    folder = ray_session(served.process.pid)
    logs = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".db"]
    texts = {file: file.read_text(errors="replace") for file in logs}
    replicas = [text for file, text in texts.items() if "replica" in file.name]
    assert any(re.search(r"POST /v1/support/suggest 200", text) for text in replicas)
    assert any(re.search(r"GET /healthz 200", text) for text in replicas)
    for file, text in texts.items():
        assert written not in text, file
        assert served.key not in text, file
        assert "hs_not-a-key" not in text, file


def ray_session(pid: int) -> Path:
    """The folder of the logs of the cluster that a process started."""
    for child in psutil.Process(pid).children(recursive=True):
        for word in child.cmdline():
            if (found := re.search(r"/tmp/ray/session_[^/\s]+", word)) is not None:
                return Path(found[0]) / "logs"
    raise AssertionError("no cluster was found")
