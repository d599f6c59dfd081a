"""The label map: which index of the classifier's head means which template.

A label map is frozen into every classifier and never travels without it; with another order every
suggestion would be a wrong one, silently. Labels are sorted by template id (by code point), and
the version is a hash of the sorted labels, so equal labels give equal versions on every machine
and a changed label always changes the version. A template that was retired keeps its index and is
masked; `lifecycle.py` says when it is time for a new map and so for a new classifier.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from heliostat.errors import BundleError, DataError

OUT_OF_MAP = -1
"""The index of a template that the map does not hold."""


@dataclass(frozen=True)
class LabelMap:
    """Template ids in index order."""

    labels: tuple[str, ...]
    created_at: datetime
    """With time zone; when the map was frozen, not part of its version."""

    def __post_init__(self) -> None:
        if not self.labels:
            raise DataError("a label map needs at least one template")
        if list(self.labels) != sorted(set(self.labels)):
            raise DataError(
                "the labels of a label map must be unique and sorted by template id; "
                "their order is the meaning of the classifier's outputs"
            )
        if self.created_at.tzinfo is None:
            raise DataError(f"created_at of a label map needs a time zone: got {self.created_at}")

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def label_map_version(self) -> str:
        """A hash of the labels in their order."""
        return blake2b(json.dumps(self.labels).encode(), digest_size=8).hexdigest()

    @cached_property
    def _index(self) -> Mapping[str, int]:
        return {label: index for index, label in enumerate(self.labels)}

    def __contains__(self, template_id: str) -> bool:
        return template_id in self._index

    def index(self, template_id: str) -> int:
        """The index of a template that must be in the map."""
        if template_id not in self._index:
            near = difflib.get_close_matches(template_id, self.labels, n=1, cutoff=0.0)
            raise DataError(
                f"template {template_id!r} is not in label map {self.label_map_version}; "
                f"the nearest is {near[0]!r}"
            )
        return self._index[template_id]

    def name(self, index: int) -> str:
        """The template at an index."""
        if not 0 <= index < len(self.labels):
            raise DataError(f"label index {index} is outside 0 to {len(self.labels) - 1}")
        return self.labels[index]

    def indices(self, template_ids: Iterable[str]) -> NDArray[np.int64]:
        """The index of each template, `OUT_OF_MAP` for those that the map does not hold."""
        return np.fromiter((self._index.get(t, OUT_OF_MAP) for t in template_ids), dtype=np.int64)

    def active_mask(self, retired: Collection[str]) -> NDArray[np.bool_]:
        """True for every label that may be suggested.

        Retired templates that the map never held are no mistake: they left before it was made.
        """
        gone = set(retired)
        return np.array([label not in gone for label in self.labels], dtype=np.bool_)

    def to_json(self) -> str:
        """The JSON artefact."""
        return json.dumps(
            {
                "label_map_version": self.label_map_version,
                "created_at": self.created_at.isoformat(),
                "labels": list(self.labels),
            },
            indent=1,
        )


@dataclass(frozen=True)
class LabelMapBuild:
    """A label map and what it leaves out."""

    label_map: LabelMap
    dropped: Mapping[str, int]
    """Templates seen in training, but too rarely, with their counts; for the report."""


def build_label_map(
    training_counts: Mapping[str, int], *, min_label_count: int, created_at: datetime
) -> LabelMapBuild:
    """The label map of the templates seen at least `min_label_count` times in training."""
    kept = sorted(t for t, count in training_counts.items() if count >= min_label_count)
    if not kept:
        most = max(training_counts.values(), default=0)
        raise DataError(
            f"no template is left in the label map: the most frequent was seen {most} times in "
            f"training and min_label_count is {min_label_count}; lower it or bring more data"
        )
    dropped = {t: training_counts[t] for t in sorted(training_counts.keys() - set(kept))}
    return LabelMapBuild(LabelMap(labels=tuple(kept), created_at=created_at), dropped)


def label_map_from_json(text: str) -> LabelMap:
    """Read a JSON artefact; one whose labels do not give its version is refused."""
    try:
        raw = json.loads(text)
        labels, created_at, version = raw["labels"], raw["created_at"], raw["label_map_version"]
        label_map = LabelMap(tuple(map(str, labels)), datetime.fromisoformat(created_at))
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"the label map is not a JSON object with label_map_version, created_at and "
            f"labels: {error}"
        ) from error
    if label_map.label_map_version != version:
        raise BundleError(
            f"the label map calls itself {version!r} but its labels give "
            f"{label_map.label_map_version!r}: the file was changed after it was frozen"
        )
    return label_map


def check_head_width(label_map: LabelMap, width: int) -> None:
    """Refuse a classifier whose head does not have one output for each label."""
    if width != len(label_map):
        raise BundleError(
            f"the classifier has {width} outputs but label map {label_map.label_map_version} "
            f"has {len(label_map)} labels: a classifier works only with the map it was "
            f"trained with"
        )
