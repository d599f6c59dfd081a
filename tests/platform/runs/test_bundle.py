"""Bundles: complete, checksummed, free of pickles, and refused when anything was changed."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from heliostat.errors import BundleError
from heliostat.runs.bundle import load_bundle, save_bundle, verify_bundle
from heliostat.runs.card import Card, render_card
from heliostat.runs.inputs import Input
from heliostat.runs.pickles import is_pickle
from heliostat.storage import Location

CARD = Card(
    title="Reply templates",
    what="Ranks reply templates.",
    inputs=[
        Input("BANKING77", "real", "queries", "CC BY 4.0"),
        Input("support_sim", "generated", "cases", "Apache-2.0"),
    ],
    metrics={"top1": 0.844},
    limits="English only.",
    how_made="`heliostat train support_templates`",
    licence="Apache-2.0",
)
FILES = (
    "README.md",
    "config.json",
    "label_map.json",
    "manifest.json",
    "model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer.json",
)


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "embed.weight": torch.randn(7, 3, generator=generator),
        "head.weight": torch.randn(2, 3, generator=generator),
    }


def make(folder: Path, **changes: Any) -> str:
    tokenizer = folder.parent / "tokenizer-source"
    tokenizer.mkdir(exist_ok=True)
    (tokenizer / "tokenizer.json").write_text("{}")
    (tokenizer / "merges.txt").write_text("a b\n")
    arguments: dict[str, Any] = {
        "weights": weights(),
        "parts": {
            "config.json": {"width": 3},
            "label_map.json": '{"labels": ["a", "b"]}',
            "tokenizer": tokenizer,
        },
        "card": CARD,
        "kind": "classifier",
        "metadata": {"job": "support_templates", "redactor_version": "1.2.0", "top1": 0.844},
        **changes,
    }
    return save_bundle(Location.of(folder), **arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_bundle_gives_back_what_was_put_in(tmp_path: Path) -> None:
    version = make(tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle", kind="classifier")
    assert bundle.version == version
    assert len(version) == 12
    assert bundle.metadata["redactor_version"] == "1.2.0"
    assert bundle.json("config.json") == {"width": 3}
    assert bundle.path("tokenizer").is_dir()
    assert bundle.path("tokenizer/merges.txt").read_text() == "a b\n"
    assert bundle.path("README.md").read_text() == render_card(CARD)
    loaded = bundle.weights()
    assert loaded.keys() == weights().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights().items())


def test_equal_content_has_an_equal_version_and_any_change_another(tmp_path: Path) -> None:
    version = make(tmp_path / "a")
    assert {make(tmp_path / f"b{n}") for n in range(8)} == {version}
    assert make(tmp_path / "c", metadata={"job": "other"}) != version
    assert make(tmp_path / "d", kind="other") != version


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_byte_in_any_file_is_refused(folder: Path, name: str, where: str) -> None:
    content = bytearray((folder / name).read_bytes())
    place = {"first": 0, "middle": len(content) // 2, "last": len(content) - 1}[where]
    content[place] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError):
        load_bundle(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=name):
        load_bundle(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError):
        verify_bundle(folder)


@pytest.mark.parametrize("name", ["extra.txt", "tokenizer/extra.json", "model.safetensors.bak"])
def test_an_extra_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("x")
    with pytest.raises(BundleError, match=rf"{name} is not in its manifest\.json"):
        load_bundle(folder)


def test_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.json").write_bytes((folder / "config.json").read_bytes())
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(BundleError, match=r"a link, config\.json"):
        load_bundle(folder)


def test_two_files_that_changed_places_are_refused(folder: Path) -> None:
    one, two = folder / "config.json", folder / "label_map.json"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    with pytest.raises(BundleError, match="was changed"):
        load_bundle(folder)


def test_a_changed_figure_in_the_metadata_is_refused(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("0.844", "0.944"))
    with pytest.raises(BundleError, match="changed after it was made"):
        load_bundle(folder)


def test_another_format_version_is_refused(folder: Path) -> None:
    manifest = folder / "manifest.json"
    content = {**json.loads(manifest.read_text()), "format_version": 2}
    manifest.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="version 2; this Heliostat reads"):
        load_bundle(folder)


def test_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(BundleError, match="of the kind classifier; the kind language-model is"):
        load_bundle(folder, kind="language-model")


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no complete bundle"):
        load_bundle(tmp_path)
    with pytest.raises(BundleError, match="no complete bundle"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.pt", b"anything"),
        ("state.json", pickle.dumps({"a": 1})),
        ("scaler", pickle.dumps([1, 2], protocol=2)),
    ],
)
def test_a_pickle_never_gets_into_a_bundle(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(BundleError, match=f"{name} is a pickle"):
        make(tmp_path / "bundle", parts={name: content})
    assert not (tmp_path / "bundle").exists()


def test_what_torch_save_writes_is_recognised_under_any_name(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "data.json")
    assert is_pickle(tmp_path / "data.json")


@pytest.mark.parametrize("tensors", [1, 3, 5, 7, 9])
def test_no_safetensors_file_is_taken_for_a_pickle(tmp_path: Path, tensors: int) -> None:
    file = tmp_path / "model.safetensors"
    save_file({f"t{n}": torch.zeros(1) for n in range(tensors)}, file)
    assert not is_pickle(file)


def test_tied_and_overlapping_tensors_come_back_whole(tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(4, 3)
    tied = {
        "embed": table,
        "head": table,
        "rows": table[1:3],
        "across": table.T,
        "flat": table.reshape(-1),
    }
    make(tmp_path / "bundle", weights=tied)
    loaded = load_bundle(tmp_path / "bundle").weights()
    assert loaded.keys() == tied.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tied.items())
    assert loaded["embed"].data_ptr() == loaded["head"].data_ptr()


def test_weights_may_come_from_a_file_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "last").mkdir()
    save_file(weights(), tmp_path / "last" / "model.safetensors")
    from_file = make(tmp_path / "a", weights=tmp_path / "last" / "model.safetensors")
    assert make(tmp_path / "b", weights=Location.of(tmp_path / "last")) == from_file


def test_a_failure_while_writing_leaves_the_old_bundle_as_it_was(folder: Path) -> None:
    before = verify_bundle(folder)
    with pytest.raises(FileNotFoundError):
        make(folder, parts={"tokenizer": folder.parent / "nowhere"})
    assert verify_bundle(folder) == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["bundle", "tokenizer-source"]


def test_a_bundle_replaces_a_bundle_but_no_other_files(folder: Path, tmp_path: Path) -> None:
    make(folder, parts={"config.json": {"width": 4}})
    assert load_bundle(folder).json("config.json") == {"width": 4}
    other = tmp_path / "work"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="holds other files"):
        make(other)
    assert (other / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["../up.json", "/etc/x", "", "manifest.json"])
def test_a_part_cannot_leave_the_bundle(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a part"):
        make(tmp_path / "bundle", parts={name: "x"})


def test_a_missing_part_is_named(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"has no vocab\.txt; it has README\.md, config\.json"):
        load_bundle(folder).path("vocab.txt")


def test_the_card_says_what_is_real_and_what_generated() -> None:
    text = render_card(CARD)
    assert "| BANKING77 | real | queries | CC BY 4.0 |" in text
    assert "| support_sim | generated | cases | Apache-2.0 |" in text
    assert "| top1 | 0.844 |" in text
    for heading in ("What it is", "Data", "Metrics", "Limits", "How it was made", "Licence"):
        assert f"## {heading}" in text


def test_a_card_without_limits_or_inputs_is_refused() -> None:
    fields = {**CARD.__dict__, "limits": " "}
    with pytest.raises(ValueError, match="says nothing in limits"):
        Card(**fields)
    with pytest.raises(ValueError, match="names no input"):
        Card(**{**CARD.__dict__, "inputs": []})


def test_a_bundle_on_s3_is_loaded_through_a_verified_copy(
    s3_bucket: Location, tmp_path: Path
) -> None:
    make(tmp_path / "local")
    local = load_bundle(tmp_path / "local")
    place = s3_bucket / "runs" / "bundle"
    arguments: dict[str, Any] = {
        "weights": local.weights(),
        "parts": {name: local.folder / name for name in ("config.json", "tokenizer")},
        "card": CARD,
        "kind": "classifier",
        "metadata": {},
    }
    version = save_bundle(place, **arguments)
    assert save_bundle(place, **arguments) == version
    bundle = load_bundle(place)
    assert bundle.version == version
    assert bundle.json("config.json") == {"width": 3}
    (bundle.folder / "config.json").write_text("{}")
    assert load_bundle(place).json("config.json") == {"width": 3}, "a spoilt copy is made anew"
    shutil.rmtree(bundle.folder)
    (place / "config.json").write_text("{}")
    with pytest.raises(BundleError, match=r"config\.json is not the file"):
        load_bundle(place)
    (place / "manifest.json").delete()
    with pytest.raises(BundleError, match="no complete bundle"):
        load_bundle(place)
