"""`heliostat verify` and `export` on a real bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from heliostat.cli.main import main
from heliostat.runs.bundle import save_bundle
from heliostat.runs.card import Card
from heliostat.runs.inputs import Input
from heliostat.storage import Location


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    card = Card(
        title="Example",
        what="Nothing.",
        inputs=[Input("numbers", "generated", "Four numbers made here.", "none")],
        metrics={"loss": 0.25},
        limits="Everything.",
        how_made="By a test.",
        licence="Apache-2.0",
    )
    folder = tmp_path / "bundle"
    weights = {"w": torch.arange(4.0)}
    save_bundle(
        Location.of(folder), weights=weights, parts={}, card=card, kind="example", metadata={}
    )
    return folder


def test_a_whole_bundle_is_told_with_its_version(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(bundle)]) == 0
    assert capsys.readouterr().out.startswith(f"bundle {bundle}: whole, version ")


def test_a_changed_byte_is_found(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = bundle / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert main(["verify", str(bundle)]) == 2
    assert "model.safetensors" in capsys.readouterr().err


def test_a_manifest_that_is_no_json_is_named(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "manifest.json").write_text("{")
    assert main(["verify", str(bundle)]) == 2
    assert "manifest.json is damaged: it is not JSON" in capsys.readouterr().err


def test_a_foreign_manifest_is_no_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    assert main(["verify", str(tmp_path)]) == 2
    assert "is not a checkpoint manifest" in capsys.readouterr().err


def test_a_bundle_without_an_exporter_cannot_be_exported(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(bundle), str(tmp_path / "exported")]) == 2
    assert "names no exporter" in capsys.readouterr().err
