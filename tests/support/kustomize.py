"""Renders the kustomizations of k8s/ without kubectl: the few features that they use, no others.

Resources are files or folders, images are renamed and tagged, a patch is a file of JSON 6902
operations (`add`, `replace`, `remove`) or a mapping `$patch: delete`. Anything else is refused, so
that no overlay can use what is not rendered. Where `kubectl` is installed, a test compares the two.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]
KEYS = {"apiVersion", "kind", "resources", "images", "patches"}


def render(folder: Path) -> list[Document]:
    """What `kubectl kustomize FOLDER` prints, in the order of the resources."""
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    refuse_others(plan, KEYS)
    documents: list[Document] = []
    for name in plan["resources"]:
        path = (folder / name).resolve()
        documents += render(path) if path.is_dir() else load(path)
    for patch in plan.get("patches", []):
        refuse_others(patch, {"path", "target"})
        documents = patched(documents, patch["target"], folder / patch["path"])
    for image in plan.get("images", []):
        refuse_others(image, {"name", "newName", "newTag"})
        for container in containers(documents):
            rename(container, image)
    return documents


def load(path: Path) -> list[Document]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def patched(documents: list[Document], target: Mapping[str, str], path: Path) -> list[Document]:
    refuse_others(target, {"kind", "name"})
    patch = yaml.safe_load(path.read_text())
    hit = [item for item in documents if matches(item, target)]
    assert len(hit) == 1, f"{path} is for one document, but {len(hit)} match {target}"
    if isinstance(patch, dict):
        assert patch.pop("$patch") == "delete", f"{path}: only $patch: delete is rendered"
        return [item for item in documents if item is not hit[0]]
    return [apply(item, patch) if item is hit[0] else item for item in documents]


def apply(document: Document, operations: list[Document]) -> Document:
    """Apply JSON 6902 operations to a copy (RFC 6902, sections 4.1 to 4.3)."""
    document = copy.deepcopy(document)
    for operation in operations:
        *parents, last = [
            part.replace("~1", "/").replace("~0", "~")
            for part in operation["path"].removeprefix("/").split("/")
        ]
        place: Any = document
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        if isinstance(place, list):
            change_list(place, last, operation)
        else:
            assert operation["op"] == "add" or last in place, f"{operation['path']}: no such key"
            if operation["op"] == "remove":
                del place[last]
            else:
                place[last] = operation["value"]
    return document


def change_list(place: list[Any], last: str, operation: Document) -> None:
    match operation["op"]:
        case "add":
            place.insert(len(place) if last == "-" else int(last), operation["value"])
        case "replace":
            place[int(last)] = operation["value"]
        case "remove":
            del place[int(last)]


def matches(document: Document, target: Mapping[str, str]) -> bool:
    return document["kind"] == target["kind"] and document["metadata"]["name"] == target["name"]


def containers(node: Any) -> Iterator[Document]:
    """Every container anywhere in a document."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("containers", "initContainers"):
                yield from value
            yield from containers(value)
    elif isinstance(node, list):
        for value in node:
            yield from containers(value)


def rename(container: Document, image: Mapping[str, str]) -> None:
    name, colon, tag = container["image"].rpartition(":")
    if not colon or "/" in tag:
        name, tag = container["image"], ""
    if name == image["name"]:
        tag = image.get("newTag", tag)
        container["image"] = image.get("newName", name) + (f":{tag}" if tag else "")


def refuse_others(table: Mapping[str, Any], known: set[str]) -> None:
    assert set(table) <= known, f"not rendered: {sorted(set(table) - known)}"
