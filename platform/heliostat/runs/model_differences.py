"""How two models differ: where they come from, config, metrics, labels and other parts, files.

The parts of a bundle belong to its job, so they are compared without knowing them: JSON parts key
by key, lists (labels, say) by what one side has and the other has not, other files by their hash.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from heliostat.errors import BundleError, UserError
from heliostat.runs.differences import ABSENT, Absent, Difference, differences, flatten
from heliostat.runs.manifest import Manifest
from heliostat.runs.model_facts import ModelFacts
from heliostat.storage import Location

_LARGEST_PART_BYTES = 1 << 20
"""JSON parts up to this size are compared key by key; a tokenizer's vocabulary is not."""
_MOST_KEYS = 12
_MOST_NAMED = 8
_LONGEST_VALUE = 60


@dataclass(frozen=True)
class ModelDifferences:
    """Where two models differ; every list is empty where they do not."""

    origin: list[Difference[str | None]]
    """Kind, version, run, config digest, data fingerprint, commit, claim."""
    config: list[Difference[str]] | None
    """None when the config of one side is not known."""
    metrics: list[Difference[float]]
    parts: list[Difference[str]]
    """Keys of JSON parts as `FILE KEY`; other files by their hash."""
    versions: list[Difference[str]]
    """Of Python and of libraries."""


def model_differences(left: ModelFacts, right: ModelFacts) -> ModelDifferences:
    """Compare two models; a `BundleError` when the bundle of one cannot be read."""
    sides = (left, right)
    manifests = []
    for side in sides:
        if side.manifest is None or side.trouble is not None:
            raise BundleError(side.trouble or f"{side.bundle} cannot be read")
        manifests.append(side.manifest)
    config = None
    if left.config is not None and right.config is not None:
        config = differences([left.config, right.config])
    return ModelDifferences(
        origin=differences(
            [origin_of(side, one) for side, one in zip(sides, manifests, strict=True)]
        ),
        config=config,
        metrics=differences([side.provenance.metrics for side in sides]),
        parts=_part_differences(left.bundle, manifests[0], right.bundle, manifests[1]),
        versions=differences([side.provenance.versions for side in sides]),
    )


def origin_of(facts: ModelFacts, manifest: Manifest | None) -> dict[str, str | None]:
    """What a model is and where it comes from, as one table."""
    provenance = facts.provenance
    registered = manifest is None and facts.versions
    version = facts.versions[0].digest if registered else manifest and manifest.digest
    return {
        "kind": manifest.kind if manifest else None,
        "bundle version": version[:12] if version else None,
        "run": provenance.run,
        "config hash": provenance.config,
        "data fingerprint": provenance.data,
        "git commit": provenance.commit,
        "claim": None if provenance.claim is None else str(provenance.claim),
    }


def _part_differences(
    left: Location, left_manifest: Manifest, right: Location, right_manifest: Manifest
) -> list[Difference[str]]:
    hashes = [
        {name: entry.sha256[:12] for name, entry in manifest.files.items()}
        for manifest in (left_manifest, right_manifest)
    ]
    rows: list[Difference[str]] = []
    for row in differences(hashes):
        name = row.key
        if ABSENT in row.values or not _is_small_json(name, left_manifest, right_manifest):
            rows.append(row)
            continue
        contents = (_json(left, name, left_manifest), _json(right, name, right_manifest))
        rows += _content_differences(name, *contents)
    return rows


def _content_differences(name: str, left: object, right: object) -> list[Difference[str]]:
    """The keys of a JSON part that differ; of very many only how many, and which came or went."""
    if not (isinstance(left, Mapping) and isinstance(right, Mapping)):
        return [Difference(name, _worded(left, right))]
    keys = differences([flatten(left), flatten(right)])
    if len(keys) > _MOST_KEYS:
        changed = [key for key in left.keys() & right.keys() if left[key] != right[key]]
        mine, theirs = list(left), list(right)
        note = f"; {len(changed)} with other values" if changed else ""
        return [Difference(name, (_own(mine, theirs) + note, _own(theirs, mine) + note))]
    return [Difference(f"{name} {row.key}", _worded(*row.values)) for row in keys]


def _is_small_json(name: str, *manifests: Manifest) -> bool:
    sizes = [manifest.files[name].bytes for manifest in manifests]
    return name.endswith(".json") and max(sizes) <= _LARGEST_PART_BYTES


def _json(bundle: Location, name: str, manifest: Manifest) -> object:
    content = (bundle / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest.files[name].sha256:
        raise BundleError(f"{bundle} was changed: {name} is not the file that was put there")
    try:
        return json.loads(content)
    except ValueError as error:
        raise UserError(f"{name} of the bundle {bundle} is no JSON: {error}") from error


def _worded(left: object, right: object) -> tuple[str | Absent, str | Absent]:
    """Two values that differ, as short text; of lists what only one side has."""
    if isinstance(left, list) and isinstance(right, list):
        mine, theirs = ([json.dumps(item) for item in side] for side in (left, right))
        return (_own(mine, theirs), _own(theirs, mine))
    return (_short(left), _short(right))


def _own(mine: list[str], theirs: list[str]) -> str:
    only = list((Counter(mine) - Counter(theirs)).elements())
    if not only and mine != theirs and sorted(mine) == sorted(theirs):
        return f"{len(mine)} entries, in another order"
    named = ", ".join(item.strip('"') for item in only[:_MOST_NAMED])
    more = f" and {len(only) - _MOST_NAMED} more" if len(only) > _MOST_NAMED else ""
    return f"{len(mine)} entries" + (f", only here: {named}{more}" if only else "")


def _short(value: object) -> str | Absent:
    if isinstance(value, Absent):
        return value
    text = str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
