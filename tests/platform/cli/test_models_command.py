"""`heliostat models` as a user meets it, on a registry that runs have filled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heliostat.cli.main import main
from heliostat.config.resources import TrackerConfig
from heliostat.runs.run import Run
from heliostat.storage import Location
from tests.support.small_bundles import small_bundle


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs whose bundles are registered, and one whose bundle is not."""
    folder = tmp_path_factory.mktemp("project")
    for name, batch, is_tracked in (("one", 16, True), ("two", 32, True), ("later", 64, False)):
        with Run.create(
            Location.of(folder / "runs"),
            "demo",
            name=name,
            resolved_yaml=f"fit:\n  batch: {batch}\n",
            digest=f"digest{batch}",
            seed=0,
            tracker=TrackerConfig(enabled=is_tracked),
        ) as run:
            bundle = run.artefact("bundle")
            metadata = {"run": name, "config": run.digest, "data": "cafe"}
            version = small_bundle(bundle, weight=float(batch), metadata=metadata)
            run.register(bundle, version)
            run.finish({"top1": 0.5})
    return folder


@pytest.fixture
def project(filled: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(filled)
    for name in ("MLFLOW_TRACKING_URI", "HELIOSTAT_RUNS"):
        monkeypatch.delenv(name, raising=False)
    return filled


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What a command prints, on the stream that its exit code calls for."""
    assert main(["models", *words]) == code
    printed = capsys.readouterr()
    return printed.out if code == 0 else printed.err


def test_a_promotion_says_what_it_replaced_and_how_to_go_back(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there was none before" in told(capsys, "promote", "demo:1")
    moved = told(capsys, "promote", "demo:2").splitlines()
    assert moved == [
        "demo@champion is now version 2; it was version 1",
        "to go back: heliostat models promote demo:1",
    ]
    assert "is version 2 already" in told(capsys, "promote", "demo")
    assert told(capsys, "promote", "demo:1", "--alias", "candidate").splitlines()[1] == (
        "to take it back: heliostat models demote demo@candidate"
    )
    listed = json.loads(told(capsys, "list", "--json"))
    assert {item["version"]: item["aliases"] for item in listed} == {
        1: ["candidate"],
        2: ["champion"],
    }
    assert "to go back: heliostat models promote demo:1 --alias candidate" in told(
        capsys, "demote", "demo@candidate"
    )
    told(capsys, "demote", "demo@champion")
    assert "promote a version by" in told(capsys, "show", "demo", code=2)


def test_the_way_back_leads_to_the_same_folder(
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    out = str(project / "runs")
    assert "there are no models" in told(capsys, "list").lower()
    assert told(capsys, "list", "--json") == "[]\n"
    text = told(capsys, "promote", "demo:1", "--alias", "test", "--out", out)
    assert text.splitlines()[1].endswith(f"demote demo@test --out {out}")
    told(capsys, "demote", "demo@test", "--out", out)


def test_the_list_shows_versions_runs_and_metrics(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for line in told(capsys, "list", "demo").splitlines() if "│ demo" in line]
    assert [("two" in line, "one" in line) for line in lines] == [(True, False), (False, True)]
    assert "top@1 0.5, loss 1.25" in lines[0]


def test_a_model_is_shown_with_its_origin(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(capsys, "show", "demo:1")
    for part in ("model demo:1, registered", "digest16", "cafe", "top@1", "model.safetensors"):
        assert part in text
    shown = json.loads(told(capsys, "show", "demo:1", "--json"))
    assert (shown["run"], shown["config"], shown["kind"]) == ("one", "digest16", "demo-kind")
    assert shown["metrics"] == {"top@1": 0.5, "loss": 1.25}
    assert shown["trouble"] is None
    assert "not registered" in told(capsys, "show", "runs/later/bundle")


def test_two_models_are_compared(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "diff", "demo:1", "runs/later/bundle")
    assert "fit.batch" in text
    assert "metrics: no difference" in text
    found = json.loads(told(capsys, "diff", "demo:1", "demo:2", "--json"))
    assert found["config"] == {"fit.batch": ["16", "32"]}
    assert found["origin"]["config hash"] == ["digest16", "digest32"]
    assert list(found["parts"]) == ["model.safetensors"]


def test_a_bundle_is_registered_later(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(project / "elsewhere")
    text = told(capsys, "register", "runs/later/bundle", "--out", out)
    assert text.endswith("is now demo:1\n")
    again = told(capsys, "register", "runs/later/bundle", "--out", out)
    assert again.endswith("was registered already as demo:1\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "demmo"], "did you mean demo?"),
        (["show", "demo:9"], "demo has no version 9; it has 1, 2"),
        (["promote", "demo:1", "--alias", "V1"], "'V1' cannot be an alias"),
        (["promote", "demo:one"], "after the colon a version number is expected"),
        (["promote", "runs/later/bundle"], "is not registered; do it by"),
        (["diff", "demo:1"], "Missing argument"),
        (["register", "runs"], "is no complete bundle"),
        (["show", "demo:1", "--out", "nowhere"], "no model is registered yet"),
        (["list", "--tracker", "http://me:secret@127.0.0.1:9"], "http://127.0.0.1:9 failed"),
        (["list", "--tracker", "postgres://me:secret@host/db"], "postgres://host/db failed"),
    ],
)
def test_a_mistake_is_one_line_without_secrets(
    project: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    text = told(capsys, *words, code=2)
    assert message in text
    assert len(text.splitlines()) == 1
    assert "secret" not in text
