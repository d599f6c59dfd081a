"""The model registry: names lead to verified bundles, and aliases never to nowhere."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from heliostat.errors import BundleError, UserError
from heliostat.runs.card import card_metrics
from heliostat.runs.claim import ClaimResult, Criterion, Measurement, write_claim
from heliostat.runs.inputs import Input
from heliostat.runs.model_differences import model_differences
from heliostat.runs.model_facts import model_facts
from heliostat.runs.provenance import provenance_of_tags
from heliostat.runs.references import ModelReference, parse_reference
from heliostat.runs.registry import (
    Place,
    demote,
    list_versions,
    promote,
    register_bundle,
    resolve,
    resolve_bundle,
)
from heliostat.runs.tracker_address import tracker_address, without_credentials
from heliostat.storage import Location
from tests.support.small_bundles import small_bundle


@pytest.fixture
def place(out: Location) -> Place:
    return Place(out, None)


def trained(start: Any, name: str, *, tracker: bool = True, **bundle: Any) -> Location:
    """A run that saved and registered a bundle."""
    with start(name, tracker=tracker) as run:
        folder = run.artefact("bundle")
        metadata = {"run": run.id, "config": run.digest, "data": f"data-{name}"}
        run.register(folder, small_bundle(folder, metadata=metadata, **bundle))
        run.finish({"top1": 0.5})
    return Location.of(folder)


def test_what_a_run_registered_is_found_by_number_alias_and_name(start: Any, place: Place) -> None:
    first = trained(start, "one")
    second = trained(start, "two", weight=1.0)
    assert resolve_bundle("demo:1", place).source == first
    assert resolve_bundle("demo:2", place).source == second
    with pytest.raises(UserError, match=r"no champion; .*heliostat models promote demo:2`"):
        resolve_bundle("demo", place)
    assert promote(place, "demo:1", "champion").before is None
    done = promote(place, "demo:2", "champion")
    assert (done.before, done.after) == (1, 2)
    promote(place, "demo:1", "candidate")
    assert resolve_bundle("demo", place).source == second
    resolved = resolve("demo@candidate", place, kind="demo-kind")
    assert resolved.bundle.source == first
    assert resolved.version is not None
    assert str(resolved.version) == "demo:1"
    with pytest.raises(BundleError, match="other-kind"):
        resolve("demo@candidate", place, kind="other-kind")
    listed = [(version.number, version.aliases) for version in list_versions(place)]
    assert listed == [(2, ("champion",)), (1, ("candidate",))]


def test_a_bundle_is_found_by_its_place_without_any_registry(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = small_bundle(Location.of(tmp_path / "mine"))
    assert resolve_bundle(str(tmp_path / "mine"), place).version == version
    monkeypatch.chdir(tmp_path)
    assert resolve_bundle("mine", place).version == version
    assert not (place.out / "mlflow.db").exists()
    assert list_versions(place) == []
    assert not (place.out / "mlflow.db").exists()


def test_the_origin_of_a_bundle_is_kept_in_the_registry(start: Any, place: Place) -> None:
    bundle = trained(start, "one", metrics={"top@1, all": 0.25, "loss": 1.5})
    (version,) = list_versions(place, "demo")
    known = provenance_of_tags(version.tags)
    assert (known.run, known.config, known.data) == ("one", "abcdef0123456789", "data-one")
    assert list(known.metrics.items()) == [("top@1, all", 0.25), ("loss", 1.5)]
    assert known.versions["python"].startswith("3.11")
    record = json.loads((bundle.parent / "result.json").read_text())
    if record["code"]["commit"] is not None:
        assert known.commit is not None
        assert known.commit.startswith(record["code"]["commit"])
    assert known.claim is None


def test_a_promotion_notes_the_newest_claim(start: Any, place: Place) -> None:
    bundle = trained(start, "one")
    for name, date, measured in (("old", "2026-01-01T00:00:00.000Z", 0.0), ("new", None, 1.0)):
        claim = ClaimResult(
            job="demo",
            statement="One is more than nothing.",
            size="small",
            method="one",
            baselines=("nothing",),
            measurements=(Measurement("one", 1, {"x": 1.0}), Measurement("nothing", 1, {"x": 0.0})),
            criteria=(Criterion("more", "x of one", measured, ">", 0.5),),
            inputs=(Input("numbers", "generated", "two numbers", "none"),),
            command="heliostat claim demo",
            seconds=1.0,
            **({"date": date} if date else {}),
        )
        write_claim(place.out / name, claim, docs=None)
    shown = [model_facts(place, name).provenance.claim for name in ("demo:1", bundle.uri)]
    promote(place, "demo:1", "champion")
    for known in (*shown, provenance_of_tags(list_versions(place)[0].tags).claim):
        assert known is not None
        assert (known.holds, known.run) == (True, "new")


def test_a_bundle_that_was_changed_after_its_registration_is_refused(
    start: Any, place: Place
) -> None:
    bundle = trained(start, "one")
    trained(start, "two", weight=1.0)
    promote(place, "demo:2", "champion")
    small_bundle(bundle, weight=2.0)  # whole, but not what was registered
    for use in (lambda: resolve_bundle("demo:1", place), lambda: promote(place, "demo:1", "x")):
        with pytest.raises(BundleError, match="demo:1 was changed after it was registered"):
            use()
    weights = (place.out / "two" / "bundle").local_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        resolve_bundle("demo", place)
    with pytest.raises(BundleError):
        promote(place, "demo:2", "candidate")
    assert [version.aliases for version in list_versions(place)] == [("champion",), ()]


def test_a_deleted_bundle_is_named_with_the_machine_it_was_on(start: Any, place: Place) -> None:
    trained(start, "one").delete()
    with pytest.raises(BundleError, match=r"demo:1 \(registered on .+\): .* no manifest\.json"):
        resolve_bundle("demo:1", place)
    facts = model_facts(place, "demo:1")
    assert facts.trouble is not None
    assert facts.provenance.run == "one"


def test_a_version_that_was_made_by_hand_is_not_trusted(start: Any, place: Place) -> None:
    from mlflow.tracking import MlflowClient

    bundle = trained(start, "one")
    MlflowClient(registry_uri=f"sqlite:///{place.out}/mlflow.db").create_model_version(
        "demo", source=bundle.uri
    )
    with pytest.raises(BundleError, match="demo:2 was not registered by Heliostat"):
        resolve_bundle("demo:2", place)


def test_a_run_that_goes_on_does_not_register_the_same_bundle_again(
    start: Any, place: Place
) -> None:
    bundle = trained(start, "one")
    version = list_versions(place)[0].digest
    with start("one", again=True, tracker=True) as run:
        run.register(bundle, (version or "")[:12])
        run.finish({})
    assert [item.number for item in list_versions(place)] == [1]


def test_a_bundle_that_is_another_one_by_now_is_not_registered(start: Any) -> None:
    run = start("one", tracker=True)
    small_bundle(run.artefact("bundle"))
    with pytest.raises(BundleError, match="saved again"):
        run.register(run.artefact("bundle"), "0123456789ab")


def test_a_bundle_of_a_run_without_a_tracker_is_registered_later(start: Any, place: Place) -> None:
    bundle = trained(start, "one", tracker=False)
    assert list_versions(place) == []
    version, is_new = register_bundle(place, bundle.uri, None)
    assert (str(version), is_new) == ("demo:1", True)
    again, is_new = register_bundle(place, bundle.uri, None)
    assert (str(again), is_new) == ("demo:1", False)
    assert provenance_of_tags(version.tags).run == "one"
    assert promote(place, bundle.uri, "champion").version.number == 1
    assert resolve_bundle("demo", place).source == bundle


def test_a_bundle_without_a_run_needs_the_name_of_a_job(place: Place, tmp_path: Path) -> None:
    path = str(tmp_path / "mine")
    small_bundle(Location.of(path))
    with pytest.raises(UserError, match="--job NAME"):
        register_bundle(place, path, None)
    with pytest.raises(UserError, match="no model is registered yet"):
        promote(place, path, "champion")
    assert str(register_bundle(place, path, "other")[0]) == "other:1"
    with pytest.raises(UserError, match="neither a bundle's folder nor the name"):
        register_bundle(place, path, "a b")


def test_an_alias_can_be_taken_away(start: Any, place: Place) -> None:
    trained(start, "one")
    promote(place, "demo:1", "candidate")
    assert str(demote(place, "demo@candidate")) == "demo:1"
    with pytest.raises(UserError, match=r"no alias 'candidate'.*--alias candidate"):
        resolve_bundle("demo@candidate", place)
    with pytest.raises(UserError, match="which alias"):
        demote(place, "demo:1")


def test_mistakes_are_told_with_what_there_is(start: Any, place: Place) -> None:
    trained(start, "one")
    promote(place, "demo:1", "champion")
    for reference, told in (
        ("demmo", "did you mean demo"),
        ("other", "there are demo"),
        ("demo:7", "no version 7; it has 1"),
        ("demo@champoin", "did you mean demo@champion"),
        ("demo:champion", "written demo@champion"),
        ("demo@1", "written demo:1"),
        ("demo@Champion", "cannot be an alias"),
        ("demo mo", "neither a bundle's folder nor the name"),
        ("./nowhere", "no complete bundle"),
    ):
        with pytest.raises(UserError, match=told):
            resolve_bundle(reference, place)
    for alias in ("latest", "v3", "3", "Über"):
        with pytest.raises(UserError, match="cannot be an alias"):
            promote(place, "demo:1", alias)


def test_runs_that_were_tracked_elsewhere_are_pointed_to(start: Any, place: Place) -> None:
    trained(start, "one")
    note = place.out / "one" / "tracker.json"
    note.write_text(json.dumps({"uri": "http://tracker:5000", "tracked_run": "x"}))
    with pytest.raises(UserError, match="tracked at http://tracker:5000, give --tracker URI"):
        resolve_bundle("other", place)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("demo", ModelReference("demo", None, None)),
        ("demo@champion", ModelReference("demo", "champion", None)),
        ("demo:12", ModelReference("demo", None, 12)),
        ("./demo", Location.of("demo")),
        ("runs/x/bundle", Location.of("runs/x/bundle")),
        ("s3://bucket/x", Location.of("s3://bucket/x")),
    ],
)
def test_references_are_read_as_they_are_written(text: str, expected: object) -> None:
    parsed = parse_reference(text)
    assert parsed == expected
    if isinstance(parsed, ModelReference):
        assert str(parsed) == text


def test_models_are_compared_by_origin_config_metrics_and_labels(start: Any, place: Place) -> None:
    trained(start, "one")
    other = "seed: 3\nfit:\n  batch: 32\n  lr: 0.001\nresources:\n  workers: 1\n"
    with start("two", resolved_yaml=other, digest="feed", tracker=True) as run:
        folder = run.artefact("bundle")
        metadata = {"run": run.id, "config": run.digest, "data": "data-two"}
        labels = ("a", "c", "d")
        version = small_bundle(folder, labels=labels, metrics={"loss": 1.0}, metadata=metadata)
        run.register(folder, version)
        run.finish({})
    sides = [model_facts(place, name) for name in ("demo:1", str(folder))]
    assert [side.name for side in sides] == ["demo:1", "demo:2"]
    found = model_differences(sides[0], sides[1])
    origin = {row.key: row.values for row in found.origin}
    assert origin["data fingerprint"] == ("data-one", "data-two")
    assert origin["run"] == ("one", "two")
    assert found.config is not None
    assert [(row.key, row.values) for row in found.config] == [("fit.batch", ("16", "32"))]
    assert {row.key: str(row.values[1]) for row in found.metrics} == {"top@1": "-", "loss": "1.0"}
    parts = {row.key: row.values for row in found.parts}
    assert parts["label_map.json labels"] == (
        "2 entries, only here: b",
        "3 entries, only here: c, d",
    )
    assert "words.txt" in parts
    assert "model.safetensors" not in parts
    assert found.versions == []
    same = model_differences(sides[0], sides[0])
    assert (same.origin, same.config, same.metrics, same.parts) == ([], [], [], [])


def test_the_config_is_known_when_only_the_tracked_run_is_left(
    start: Any, place: Place, tmp_path: Path
) -> None:
    trained(start, "one")
    (place.out / "one" / "config.yaml").delete()
    config = model_facts(place, "demo:1").config
    assert config is not None
    assert config["fit.batch"] == "16"


def test_what_an_older_heliostat_did_not_note_down_is_found_and_completed(
    start: Any, place: Place
) -> None:
    from mlflow.tracking import MlflowClient

    bundle = trained(start, "one")
    digest = list_versions(place)[0].tags["version"]
    MlflowClient(registry_uri=f"sqlite:///{place.out}/mlflow.db").create_model_version(
        "demo", source=bundle.uri, tags={"heliostat.run": "one", "version": digest}
    )
    assert resolve_bundle("demo:2", place).source == bundle
    assert model_facts(place, "demo:2").provenance.data == "data-one"
    promote(place, "demo:2", "champion")
    older, newer = (provenance_of_tags(item.tags) for item in list_versions(place))
    assert older == newer


def test_many_changed_keys_of_a_part_are_summed_up(start: Any, place: Place) -> None:
    for name, first, value in (("one", 0, "old"), ("two", 1, "new")):
        with start(name, tracker=True) as run:
            folder = run.artefact("bundle")
            many = {f"key{number}": {"text": value} for number in range(first, 40)}
            run.register(folder, small_bundle(folder, parts={"many.json": many}))
            run.finish({})
    found = model_differences(model_facts(place, "demo:1"), model_facts(place, "demo:2"))
    assert [(row.key, row.values) for row in found.parts] == [
        (
            "many.json",
            (
                "40 entries, only here: key0; 39 with other values",
                "39 entries; 39 with other values",
            ),
        )
    ]


def test_metrics_of_a_card_are_read_back() -> None:
    assert card_metrics("# T\n\n## Metrics\n\nNot stated.\n\n## Limits\n\n| a | 1 |\n") == {}


MOVE = (
    "import sys\n"
    "from heliostat.runs.registry import *\n"
    "registry = Place(Location.of(sys.argv[1]), None).registry()\n"
    "print('ready', flush=True)\n"
    "for turn in range(int(sys.argv[3])):\n"
    "    registry.set_alias('demo', 'champion', int(sys.argv[2]))\n"
)


def mover(place: Place, number: int, turns: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MOVE, place.out.uri, str(number), str(turns)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_promotions_at_once_and_killed_ones_leave_the_alias_on_a_version(
    start: Any, place: Place
) -> None:
    trained(start, "one")
    trained(start, "two", weight=1.0)
    # Nobody is champion yet, so the two also race for the first row.
    processes = [mover(place, 1, 25), mover(place, 2, 25)]
    killed = mover(place, 1, 100_000)
    for process in (*processes, killed):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    registry = place.registry()
    deadline = time.monotonic() + 60
    while registry.alias("demo", "champion") is None:
        assert time.monotonic() < deadline
    seen = set()
    while any(process.poll() is None for process in processes):
        seen.add(registry.alias("demo", "champion"))
        assert time.monotonic() < deadline
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert [process.returncode for process in processes] == [0, 0]
    assert seen <= {1, 2}
    assert registry.alias("demo", "champion") in {1, 2}
    assert promote(place, "demo:2", "champion").after == 2


def test_the_registry_is_where_the_runs_are_tracked(
    out: Location, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracker_address(out, None).uri == f"sqlite:///{out}/mlflow.db"
    monkeypatch.setenv("HELIOSTAT_HOME", str(tmp_path))
    remote = tracker_address(Location.of("s3://bucket/runs"), None)
    assert remote.uri == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@tracker")
    assert str(tracker_address(out, None)) == "http://tracker"
    assert tracker_address(out, "http://other").uri == "http://other"


@pytest.mark.parametrize(
    "text",
    [
        "http://me:secret@host:5000",
        "no answer from postgresql://me:se@cret@host/db today",
        "postgresql://host/db?user=me&password=secret",
    ],
)
def test_credentials_are_cut(text: str) -> None:
    cut = without_credentials(text)
    assert "cret" not in cut
    assert "host" in cut


def test_a_server_that_is_away_is_told_in_one_sentence_without_credentials(out: Location) -> None:
    place = Place(out, "http://me:secret@127.0.0.1:9")
    with pytest.raises(UserError, match=r"registry at http://127\.0\.0\.1:9 failed") as caught:
        resolve_bundle("demo", place)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server with a database of its own."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not answers(uri):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def answers(uri: str) -> bool:
    try:
        return requests.get(f"{uri}/health", timeout=1).ok
    except requests.RequestException:
        return False


@pytest.mark.slow
def test_a_server_knows_local_bundles_too(
    start: Any, out: Location, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    place = Place(out, None)
    first = trained(start, "one")
    second = trained(start, "two", tracker=False, weight=1.0)
    assert not (out / "mlflow.db").exists()
    assert str(register_bundle(place, second.uri, None)[0]) == "demo:2"
    assert [version.place for version in list_versions(place)] == [second, first]
    assert promote(place, "demo:1", "champion").before is None
    assert promote(place, "demo:2", "champion").before == 1
    assert resolve_bundle("demo", place).source == second
    assert demote(place, "demo@champion").number == 2
    (out / "one" / "config.yaml").delete()
    config = model_facts(place, "demo:1").config
    assert config is not None
    assert config["fit.batch"] == "16"
    small_bundle(first, weight=3.0)
    with pytest.raises(BundleError, match="changed after it was registered"):
        resolve_bundle("demo:1", place)
    with pytest.raises(UserError, match="did you mean demo"):
        resolve_bundle("demmo", place)


def test_a_bundle_on_an_object_store_is_resolved(
    start: Any, s3_bucket: Location, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HELIOSTAT_HOME", str(tmp_path))
    place = Place(s3_bucket / "runs", None)
    with start("one", place=place.out, tracker=True) as run:
        folder = run.artefact("bundle")
        version = small_bundle(folder, metadata={"run": run.id})
        run.register(folder, version)
        run.finish({})
    assert promote(place, "demo:1", "champion").after == 1
    bundle = resolve_bundle("demo", place)
    assert (bundle.source, bundle.version) == (folder, version)
    assert bundle.folder.is_relative_to(tmp_path)
    assert resolve_bundle(folder.uri, place).version == version
