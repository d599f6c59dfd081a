"""Which side a case is on, and which pairs are held out, decided by a hash.

A case is on the same side today and next year, on every machine, however the data grow: the side
depends on the salt and the case id alone. All messages of a case share its side, so no
conversation is seen from both. The salt belongs to the run's artefacts; with another salt every
measured figure refers to other data. The holdout hides suggestions from a fixed share of
(advocate, case) pairs (section 2 of the evaluation in Wyatte et al., arXiv 2405.15765: 2 %).

The hash is BLAKE2b with an eight-byte digest read as a big-endian integer, not Python's `hash`,
which differs from process to process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from heliostat.errors import ConfigError, DataError

Side = Literal["train", "validation", "test"]

PRETRAIN, PRETRAIN_VALIDATION = "pretrain", "pretrain-validation"
"""The sides of cases that nobody labelled."""
HOLDOUT_BUCKETS = 10_000
_HASH_BYTES = 8
_HASH_RANGE = 2 ** (8 * _HASH_BYTES)


@dataclass(frozen=True)
class SideRule:
    """Which side a case is on: that of its pool, or decided by the hash of its id."""

    pool: str | None
    """The pool of the simulator that it belongs to; None for a user's own cases."""
    salt: str
    test_share: float
    validation_share: float

    def side(self, case_id: str) -> str:
        """The side of a case."""
        if self.pool is None:
            return side_of(case_id, self.salt, self.validation_share, 1 - self.test_share)
        if self.pool == "unlabelled":
            # The whole pool is for training: only the validation cut of the hash is wanted.
            side = side_of(case_id, self.salt, self.validation_share, 1 - 2**-52)
            return PRETRAIN if side == "train" else PRETRAIN_VALIDATION
        return "train" if self.pool == "labelled" else self.pool


def side_of(case_id: str, salt: str, validation_share: float, train_share: float = 0.5) -> Side:
    """The side of a case.

    `train_share` of the cases are for training and the rest for testing; `validation_share` of
    the training cases are kept for early decisions and calibration. Validation is cut out of the
    training side, so changing its share never moves a case to or from the test side.
    """
    if not (0.0 < train_share < 1.0 and 0.0 <= validation_share < 1.0):
        raise ConfigError(
            f"train_share is {train_share} and validation_share {validation_share}: expected "
            f"0 < train_share < 1 and 0 <= validation_share < 1"
        )
    position = _hashed(salt + case_id) / _HASH_RANGE
    if position >= train_share:
        return "test"
    return "validation" if position < train_share * validation_share else "train"


def is_held_out(advocate_id: str, case_id: str, salt: str, share_per_10_000: int) -> bool:
    """Whether this advocate sees no suggestions in this case."""
    bucket = _hashed(f"{salt}|{advocate_id}|{case_id}") % HOLDOUT_BUCKETS
    return bucket < share_per_10_000


def drawn(sample_ids: Sequence[str], budget: int, salt: str) -> list[int]:
    """The positions of `budget` samples drawn by hash, in their original order.

    A smaller budget draws a subset of what a larger one draws, and every arm of a comparison
    draws the same. With fewer samples than the budget, all are drawn.
    """
    ranked = sorted(range(len(sample_ids)), key=lambda i: (_hashed(salt + sample_ids[i]), i))
    return sorted(ranked[:budget])


def check_no_shared_case(case_ids: Mapping[Side, Iterable[str]]) -> None:
    """Refuse data in which two sides share a case."""
    owner: dict[str, Side] = {}
    for side, ids in case_ids.items():
        for case_id in set(ids):
            other = owner.setdefault(case_id, side)
            if other != side:
                raise DataError(
                    f"case {case_id!r} is on the {other} side and on the {side} side: all samples "
                    f"of a case must be on one side; split again by case id"
                )


def _hashed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=_HASH_BYTES).digest(), "big")
