"""The endpoint over HTTP: a real client against `heliostat serve` in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browse, chromium
from served_endpoint import PUBLISHED_EVERY_S, Served, conversation, serving
from support_bundle import write_support_bundle

from jobs.support_templates.split import is_held_out

ROOT = Path(__file__).parents[3]
WORDS = ("card", "refund", "transfer", "password", "charge", "statement", "fee", "limit")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    versions = {
        name: write_support_bundle(folder / name, seed, leave_out=out)
        for name, seed, out in (("one", 1, 0), ("two", 2, 3), ("three", 3, 0))
    }
    with serving(folder, versions, "--bundle", "one") as running:
        yield running


@pytest.fixture
def one(served: Served) -> Iterator[Served]:
    """The endpoint with its first version alone, afterwards too."""
    yield served
    assert served.deploy("one").returncode == 0


def test_suggestions_are_ranked_probabilities_with_titles(served: Served) -> None:
    answer = served.suggest("a refund for my card, mail ann@example.org", k=7)
    assert answer["model_version"] == served.versions["one"]
    suggestions = answer["suggestions"]
    assert [one["rank"] for one in suggestions] == list(range(1, 8))
    probabilities = [one["probability"] for one in suggestions]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0 < sum(probabilities) <= 1
    assert all(one["title"] != one["template_id"] for one in suggestions)
    assert answer["cohort"] == "treatment"
    assert answer["abstained"] is False
    assert answer["abstain_reason"] is None
    assert answer["redactions"] == {"EMAIL": 1}
    context = answer["context"]
    assert context["messages_total"] == context["messages_used"] == 1
    assert not context["truncated"]
    assert context["tokens_used"] > 5


def test_retired_templates_are_masked_and_the_rest_renormalised(served: Served) -> None:
    _, model = served.ask("/v1/support/model")
    listed = json.loads((served.folder / "one" / "templates.json").read_text())
    now = datetime.now(UTC)
    retired = {
        name
        for name, one in listed.items()
        if one["retired_at"] is not None and datetime.fromisoformat(one["retired_at"]) <= now
    }
    assert model["masked_templates"] == len(retired) > 0
    seen = {
        one["template_id"]
        for word in WORDS
        for one in served.suggest(word, k=20, min_probability=0.0)["suggestions"]
    }
    assert seen
    assert not seen & retired
    everything = served.suggest(k=20, min_probability=0.0)["suggestions"]
    names = [one["template_id"] for one in everything]
    used = names[:2]
    fewer = served.suggest(k=20, exclude_used=True, used_template_ids=used)["suggestions"]
    left = 1 - sum(one["probability"] for one in everything[:2])
    assert [one["template_id"] for one in fewer][:18] == names[2:]
    for before, after in zip(everything[2:], fewer, strict=False):
        assert after["probability"] == pytest.approx(before["probability"] / left, rel=1e-6)
    assert served.suggest(k=20, used_template_ids=used)["suggestions"] == everything


def test_it_abstains_when_it_is_not_sure_or_nothing_is_left(served: Served) -> None:
    unsure = served.suggest(min_probability=0.99)
    assert (unsure["abstained"], unsure["abstain_reason"]) == (True, "low_confidence")
    assert unsure["suggestions"] == []
    labels = json.loads((served.folder / "one" / "label_map.json").read_text())["labels"]
    nothing = served.suggest(exclude_used=True, used_template_ids=labels)
    assert (nothing["abstained"], nothing["abstain_reason"]) == (True, "all_masked")


def test_the_holdout_sees_nothing_and_is_the_share_it_should_be(served: Served) -> None:
    held = next(
        name
        for name in (f"advocate-{number}" for number in range(10_000))
        if is_held_out(name, "case", "heliostat-holdout", 200)
    )
    answer = served.suggest(advocate_id=held)
    assert (answer["cohort"], answer["abstain_reason"]) == ("holdout", "holdout")
    assert answer["suggestions"] == []
    assert answer["suggestion_id"]


def test_an_answer_does_not_depend_on_what_is_computed_beside_it(served: Served) -> None:
    texts = [" ".join(WORDS[: 1 + number % 8]) for number in range(48)]

    def ranking(text: str) -> dict[str, float]:
        answer = served.suggest(text, k=20)
        return {one["template_id"]: one["probability"] for one in answer["suggestions"]}

    alone = {text: ranking(text) for text in set(texts)}
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ranking, texts))
    for text, found in zip(texts, together, strict=True):
        assert found == pytest.approx(alone[text], abs=1e-5)


BAD = "never repeat this text"


@pytest.mark.parametrize(
    ("body", "status", "code", "where"),
    [
        (b'{"case_id": ', 400, "malformed", None),
        ({"case_id": "c", "messages": []}, 422, "invalid", "messages"),
        ({"messages": [{"role": "customer", "text": BAD}]}, 422, "invalid", "case_id"),
        (
            {"case_id": "c", "messages": [{"role": BAD, "text": BAD}]},
            422,
            "invalid",
            "messages.0.role",
        ),
        (
            {"case_id": "c", "messages": [{"role": "system", "text": " \n"}]},
            422,
            "invalid",
            "messages",
        ),
        (conversation(BAD, k=0), 422, "invalid", "k"),
        (conversation(BAD, k=21), 422, "invalid", "k"),
        (conversation(BAD, min_probability=1.5), 422, "invalid", "min_probability"),
        (conversation(BAD, kk=1), 422, "invalid", "kk"),
        (conversation(BAD, **{BAD: 1}), 422, "invalid", "?"),
        (conversation(BAD, k="5"), 422, "invalid", "k"),
        (conversation(BAD, exclude_used=0), 422, "invalid", "exclude_used"),
        (
            {"case_id": "c", "messages": [{"role": "system", "text": "x", "sent_at": 0}]},
            422,
            "invalid",
            "messages.0.sent_at",
        ),
        (
            conversation(BAD, used_template_ids=["general.greet", "none"]),
            422,
            "invalid",
            "used_template_ids.1",
        ),
        (conversation("x" * 20_001), 422, "invalid", "messages.0.text"),
        (b"x" * 2_000_001, 413, "too_large", None),
    ],
)
def test_a_mistake_has_a_code_and_a_field_and_repeats_nothing(
    served: Served, body: Any, status: int, code: str, where: str | None
) -> None:
    got, answer = served.ask("/v1/support/suggest", body)
    assert (got, answer["error"]["code"]) == (status, code)
    assert answer["error"]["field"] == where
    assert BAD not in json.dumps(answer)


def test_keys_are_needed_but_for_health_and_the_page(served: Served) -> None:
    body = conversation("hello")
    assert served.ask("/v1/support/suggest", body, key=None)[0] == 401
    assert served.ask("/v1/support/suggest", body, key="hs_wrong")[0] == 403
    assert served.ask("/v1/support/model", key=None)[0] == 401
    status, health = served.ask("/v1/support/healthz", key=None)
    assert (status, health["status"]) == (200, "ok")
    assert str(served.folder) not in json.dumps(health)
    asked = urllib.request.Request(served.url + "/", headers={"x-request-id": "mine-1"})
    with urllib.request.urlopen(asked, timeout=30) as page:
        assert b"Reply suggestions" in page.read()
        assert page.headers.get_all("x-request-id") == ["mine-1"]
    assert served.key not in "".join((served.folder / "keys.json").read_text())


def test_the_first_feedback_counts_and_a_second_is_refused(served: Served) -> None:
    suggestion = served.suggest()["suggestion_id"]
    event = {
        "suggestion_id": suggestion,
        "chosen_template_id": "brand.new",
        "selection_time_ms": 900,
        "edited": False,
    }
    assert served.ask("/v1/support/feedback", event)[0] == 202
    status, answer = served.ask("/v1/support/feedback", event)
    assert (status, answer["error"]["code"]) == (409, "conflict")
    late = {**event, "suggestion_id": "x", "selection_time_ms": -1}
    assert served.ask("/v1/support/feedback", late)[0] == 422
    _, lifecycle = served.ask("/v1/support/lifecycle")
    assert lifecycle["new_templates"] == {"brand.new": 1}
    assert lifecycle["out_of_map_rate"] == 1.0
    assert lifecycle["should_retrain"] is True


def test_a_swap_and_a_canary_drop_no_request_and_cases_stay_with_their_version(one: Served) -> None:
    stop = threading.Event()
    seen: list[tuple[str, int, str]] = []

    def client(number: int) -> None:
        turn = 0
        while not stop.is_set():
            case = f"case-{number}-{turn % 40}"
            turn += 1
            status, answer = one.ask("/v1/support/suggest", conversation("a fee", case_id=case))
            seen.append((case, status, answer.get("model_version", "")))

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, number) for number in range(4)]
        assert one.deploy("one", "two=25").returncode == 0
        canary_from = len(seen)
        until = time.monotonic() + 5
        while len(seen) < canary_from + 400 and time.monotonic() < until + 60:
            stop.wait(0.05)
        canary_to = len(seen)
        assert one.deploy("three").returncode == 0
        swapped_from = len(seen) + 8
        while len(seen) < swapped_from + 100:
            stop.wait(0.05)
        stop.set()
        for done in clients:
            done.result(60)
    assert {status for _, status, _ in seen} == {200}
    during = seen[canary_from + 8 : canary_to]
    version_of: dict[str, set[str]] = {}
    for case, _, version in during:
        version_of.setdefault(case, set()).add(version)
    assert all(len(versions) == 1 for versions in version_of.values())
    share = sum(v == {one.versions["two"]} for v in version_of.values()) / len(version_of)
    assert 0.25 - 3 * (0.25 * 0.75 / len(version_of)) ** 0.5 < share
    assert share < 0.25 + 3 * (0.25 * 0.75 / len(version_of)) ** 0.5
    assert {version for _, _, version in seen[swapped_from:]} == {one.versions["three"]}


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_answering(one: Served) -> None:
    bundle = one.folder / "one"
    broken = one.folder / "broken"
    write_support_bundle(broken, 9, redactor_version="0")
    done = one.deploy("broken")
    assert done.returncode == 1
    assert "could not be loaded" in done.stderr
    assert "what ran before goes on answering" in done.stderr
    assert one.suggest()["model_version"] == one.versions["one"]
    _, model = one.ask("/v1/support/model")
    assert "redactor 0" in model["last_refusal"]
    # Serve's goal is the old lineup again: a replica that dies now comes back with it.
    before = model["replica"]
    one.kill_replicas()
    until = time.monotonic() + 60
    while True:
        # HAProxy closes the connection of a client whose request a dead replica had.
        with contextlib.suppress(ConnectionError):
            status, model = one.ask("/v1/support/model")
            if status == 200 and model["replica"] != before:
                break
        assert time.monotonic() < until
        time.sleep(0.2)
    assert one.suggest()["model_version"] == one.versions["one"]
    changed = one.folder / "changed"
    subprocess.run(["cp", "-r", str(bundle), str(changed)], check=True)
    (changed / "label_map.json").write_text("{}")
    done = one.heliostat(
        "serve", "build", "support_templates", *one.settings, "--bundle", "changed"
    )
    assert done.returncode == 2
    assert "label_map.json" in done.stderr


def test_a_cluster_elsewhere_is_waited_for_where_it_is_said_where_it_answers(one: Served) -> None:
    write_support_bundle(one.folder / "refused", 9, redactor_version="0")
    words = [*one.settings, "--bundle", "refused"]
    assert one.heliostat("serve", "build", "support_templates", *words).returncode == 0
    # This machine's address, written so that nobody takes it for that.
    far = one.dashboard.replace("127.0.0.1", "127.1")
    command = ("serve", "deploy", "serve.yaml", "--address", far)
    done = one.heliostat(*command, "--endpoint", one.url)
    assert done.returncode == 1, done.stderr
    assert "what ran before goes on answering" in done.stderr
    assert one.suggest()["model_version"] == one.versions["one"]
    done = one.heliostat(*command)
    assert done.returncode == 0, done.stderr
    assert "--endpoint URL" in done.stderr


def test_another_port_than_serve_runs_with_is_refused_at_once(one: Served) -> None:
    began = time.monotonic()
    done = one.deploy("two", settings=["serve.http.port=1234"])
    assert done.returncode == 2
    assert "http_options.port is 1234, but Serve" in done.stderr
    assert time.monotonic() - began < 60
    assert one.suggest()["model_version"] == one.versions["one"]


def test_what_ran_before_comes_back_when_an_endpoint_of_another_name_does_not_start(
    one: Served,
) -> None:
    write_support_bundle(one.folder / "unread", 9, redactor_version="0")
    words = [*one.settings, "--bundle", "unread"]
    assert one.heliostat("serve", "build", "support_templates", *words).returncode == 0
    file = one.folder / "serve.yaml"
    file.write_text(file.read_text().replace("name: support_templates", "name: renamed"))
    done = one.heliostat("serve", "deploy", "serve.yaml", "--address", one.dashboard)
    assert done.returncode == 1, done.stderr
    until = time.monotonic() + 90
    while one.ask("/v1/support/model")[0] != 200:
        assert time.monotonic() < until
        time.sleep(0.2)
    assert one.suggest()["model_version"] == one.versions["one"]


def test_a_port_that_is_taken_is_named_and_the_first_key_was_shown(served: Served) -> None:
    words = [served.settings[0], "serve.keys=others.json", "--bundle", "one"]
    done = served.heliostat("serve", "support_templates", *words)
    assert done.returncode == 2
    assert "cannot listen at 127.0.0.1:" in done.stderr
    assert "serve.http.port=" in done.stderr
    assert done.stdout.startswith("key    hs_")
    assert (served.folder / "others.json").is_file()


def test_an_overload_is_refused_with_when_to_come_again(one: Served) -> None:
    # Nobody who finds another waiting can be answered within this.
    assert one.deploy("one", settings=["serve.limits.answer_ms=0.001"]).returncode == 0
    found: list[tuple[int, str, str]] = []

    def client(number: int) -> None:
        for turn in range(8):
            body = json.dumps(conversation(f"a fee of {number} in {turn}")).encode()
            request = urllib.request.Request(
                f"{one.url}/v1/support/suggest",
                body,
                {"content-type": "application/json", "authorization": f"Bearer {one.key}"},
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    found.append((answer.status, "", ""))
            except urllib.error.HTTPError as error:
                code = json.load(error)["error"]["code"]
                found.append((error.code, code, error.headers["retry-after"]))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(client, range(16)))
    assert {status for status, _, _ in found} == {200, 503}
    assert {code for status, code, _ in found if status == 503} == {"overloaded"}
    assert all(int(after) >= 1 for status, _, after in found if status == 503)


def test_the_same_bundle_given_again_is_read_again(one: Served) -> None:
    moved = one.folder / "moved"
    shutil.copytree(one.folder / "one", moved)
    assert one.deploy("moved").returncode == 0
    shutil.rmtree(moved)
    shutil.copytree(one.folder / "three", moved)
    assert one.deploy("moved").returncode == 0
    assert one.suggest()["model_version"] == one.versions["three"]


def test_a_shadow_gets_copies_and_answers_nobody(one: Served) -> None:
    assert one.deploy("one", shadow="three").returncode == 0
    for number in range(20):
        assert one.suggest(WORDS[number % 8])["model_version"] == one.versions["one"]
    until = time.monotonic() + 20
    while True:
        _, report = one.ask("/v1/support/shadow")
        if report["compared"] + report["dropped"] + report["failed"] == 20:
            break
        assert time.monotonic() < until, report
        time.sleep(0.05)
    assert report["shadow"] == one.versions["three"]
    assert report["failed"] == 0
    assert 0 <= report["mean_agreement"] <= 1


@pytest.mark.skipif(chromium() is None, reason="no Chromium is installed")
def test_the_page_shows_a_conversation_and_its_suggestions(served: Served, tmp_path: Path) -> None:
    async def story(browser: Browser) -> dict[str, Any]:
        await browser.open(served.url + "/")
        await browser.until("document.querySelector('#versions').textContent.includes('version')")
        await browser.run(f"document.querySelector('#key').value = {json.dumps(served.key)}")
        await browser.run("document.querySelector('#example').value = '1'")
        await browser.run("document.querySelector('#example').dispatchEvent(new Event('change'))")
        await browser.run("document.querySelector('form button').click()")
        await browser.until("document.querySelectorAll('#answers table tr').length === 5")
        await browser.picture(tmp_path / "page.png")
        answers = await browser.run("document.querySelector('#answers').innerText")
        written = await browser.run("document.querySelector('#text').value")
        await browser.run(
            "document.querySelector('#text').value = "
            "'customer: my refund is late\\nadvocate: hello\\nand welcome'"
        )
        await browser.run("document.querySelector('#text').dispatchEvent(new Event('input'))")
        request = await browser.run("document.querySelector('#body').value")
        await browser.run("document.querySelector('#text').value = 'nobody says this'")
        await browser.run("document.querySelector('#text').dispatchEvent(new Event('input'))")
        refused = await browser.run("document.querySelector('#text').validationMessage")
        await browser.run("document.querySelector('#body').value = '{'")
        await browser.run("document.querySelector('#body').dispatchEvent(new Event('input'))")
        await browser.run("document.querySelector('form button').click()")
        await browser.until("document.querySelectorAll('#answers article').length === 2")
        mistake = await browser.run("document.querySelector('#answers .error').innerText")
        card = await browser.run("document.querySelector('.card').innerText")
        return {
            "answers": answers,
            "mistake": mistake,
            "card": card,
            "written": written,
            "request": json.loads(request),
            "refused": refused,
            "requested": browser.requested,
            "complaints": browser.complaints,
        }

    seen = browse(story)
    assert "a transfer to my sister never arrived" in seen["answers"]
    assert "hidden from it: 1 email" in seen["answers"]
    assert seen["written"].startswith("customer: hello\nsystem: An advocate has joined")
    assert seen["request"] == {
        "case_id": "example-2",
        "messages": [
            {"role": "customer", "text": "my refund is late"},
            {"role": "advocate", "text": "hello\nand welcome"},
        ],
        "k": 5,
    }
    assert "Begin the first line with customer:" in seen["refused"]
    assert "5." in seen["answers"]
    assert "not valid JSON" in seen["mistake"]
    assert "Random weights, for tests." in seen["card"]
    assert seen["complaints"] == []
    assert all(url.startswith((served.url, "data:")) for url in seen["requested"])
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_every_metric_of_the_dashboard_is_published(served: Served) -> None:
    dashboard = json.loads((ROOT / "cluster" / "grafana" / "serving.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_heliostat_\w+", target["expr"])
    }
    # Those of a shadow are there only where one was.
    asked = {name for name in asked if "shadow" not in name}
    assert len(asked) >= 5
    served.suggest()
    until = time.monotonic() + 60
    while missing := {name for name in asked if f"\n{name}{{" not in served.metrics()}:
        assert time.monotonic() < until, missing
        time.sleep(1)
    text = served.metrics()
    assert f'version="{served.versions["one"]}"' in text
    assert 'key="first"' in text
    assert served.key not in text


def test_clients_that_ask_together_share_a_batch(served: Served) -> None:
    def batches() -> tuple[float, float]:
        found = re.findall(
            r"ray_heliostat_serve_(batch_items_count|computed_total)\{.*\} (\S+)", served.metrics()
        )
        kinds = ("batch_items_count", "computed_total")
        count, total = (sum(float(v) for kind, v in found if kind == want) for want in kinds)
        return count, total

    def settled(least: float) -> tuple[float, float]:
        """What Ray publishes, once it has stood still for a few of its intervals."""
        seen = [batches()]
        deadline = time.monotonic() + 120
        while len(seen) < 3 or len(set(seen[-3:])) > 1 or seen[-1][1] < least:
            assert time.monotonic() < deadline, seen
            time.sleep(1.5 * PUBLISHED_EVERY_S)
            seen.append(batches())
        return seen[-1]

    count, total = settled(least=0)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: served.suggest(f"a fee of {number}"), range(320)))
    more_count, more_total = settled(least=total + 320)
    assert more_total - total == 320
    assert (more_total - total) / (more_count - count) > 2


def test_clients_that_hang_up_free_their_places(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    body = json.dumps(conversation("a refund " * 400)).encode()
    head = (
        f"POST /v1/support/suggest HTTP/1.1\r\nhost: {host}\r\n"
        f"authorization: Bearer {served.key}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode()
    gone = re.compile(r'requests_total\{.*code="client_gone".*status="499".*\} (\S+)')

    def left() -> float:
        return sum(float(count) for count in gone.findall(served.metrics()))

    before, deadline = left(), time.monotonic() + 120
    while left() - before < 100:
        assert time.monotonic() < deadline
        with ExitStack() as stack:
            for _ in range(48):
                connection = socket.create_connection((host, int(port)), timeout=30)
                stack.enter_context(connection)
                connection.sendall(head + body)
    began = time.monotonic()
    assert served.suggest()["suggestions"]
    assert time.monotonic() - began < 10


def test_the_client_of_the_documentation_works(served: Served) -> None:
    page = (ROOT / "docs" / "serving.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    assert "http://127.0.0.1:8000" in code
    done = subprocess.run(
        [sys.executable, "-c", code.replace("http://127.0.0.1:8000", served.url)],
        env={**os.environ, "HELIOSTAT_KEY": served.key},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert all(re.fullmatch(r"0\.\d{3}  \S.*", line) for line in lines)


def test_the_load_test_prints_the_table_and_status_the_versions(served: Served) -> None:
    words = ["--rates", "2,5", "--seconds", "3", "--key", served.key]
    done = served.heliostat("serve", "load", served.url, *words)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    for column in ("requests/s", "peak", "p99", "max", "errors"):
        assert column in text
    assert text.count("none") == 2
    keyless = served.heliostat("serve", "load", served.url, "--rates", "5", "--seconds", "1")
    assert "401" in keyless.stdout
    shown = served.heliostat("serve", "status", served.url)
    assert shown.stdout.strip() == f"100 % version {served.versions['one']}".replace("% v", "%  v")
    nobody = served.heliostat("serve", "status", "http://127.0.0.1:9")
    assert nobody.returncode == 2
    assert "no endpoint of Heliostat answers" in nobody.stderr


def test_the_api_is_described(served: Served) -> None:
    with urllib.request.urlopen(served.url + "/openapi.json", timeout=30) as answer:
        description = json.load(answer)
    paths = description["paths"]
    assert set(paths) == {
        f"/v1/support/{name}"
        for name in ("suggest", "feedback", "lifecycle", "healthz", "model", "shadow")
    }
    suggest = paths["/v1/support/suggest"]["post"]
    assert {"200", "401", "413", "422", "429", "503", "504"} <= set(suggest["responses"])
    assert suggest["security"] == [{"key": []}]
    assert paths["/v1/support/healthz"]["get"]["security"] == []
    with urllib.request.urlopen(served.url + "/docs", timeout=30) as answer:
        text = answer.read().decode()
    assert "used_template_ids" in text
    assert "http" not in re.sub(r"https?://www\.w3\.org", "", text).replace(served.url, "")
