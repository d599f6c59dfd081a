"""Only committed checkpoints exist, and only whole ones are used."""

from __future__ import annotations

import pytest

from heliostat.checkpoint.manifest import (
    MANIFEST_NAME,
    committed,
    damage,
    from_json,
    read_manifest,
    tag_of,
    to_json,
)
from heliostat.checkpoint.restore import must_reshard, newest_whole
from heliostat.checkpoint.retention import collect, collect_orphans
from heliostat.checkpoint.verify import verify_checkpoint
from heliostat.errors import CheckpointError, UserError
from heliostat.storage import Location


def newest(checkpoints: Location):
    """As one rank of one."""
    return newest_whole(checkpoints, 0, 1, lambda value: value, lambda value: [value])


def test_a_manifest_is_read_back_as_it_was_written(commit) -> None:
    manifest = read_manifest(commit(3))
    assert manifest is not None
    assert from_json(to_json(manifest), "here") == manifest
    assert manifest.bytes == sum(record.size for record in manifest.files)


def test_a_folder_without_a_manifest_is_no_checkpoint(checkpoints: Location, commit) -> None:
    commit(4)
    unfinished = commit(8)
    (unfinished / MANIFEST_NAME).delete()
    assert [manifest.state.step for _, manifest in committed(checkpoints)] == [4]
    with pytest.raises(UserError, match="is not a committed checkpoint"):
        verify_checkpoint(unfinished)


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "manifest"])
def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(
    checkpoints: Location, commit, harm: str
) -> None:
    commit(4)
    broken = commit(8)
    file = broken / "rank-1.pt"
    if harm == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    elif harm == "flip":
        file.write_bytes(b"X" + file.read_bytes()[1:])
    elif harm == "remove":
        file.delete()
    else:
        (broken / MANIFEST_NAME).write_text('{"format": 1, "tag"')
    found, passed_over = newest(checkpoints)
    assert found is not None
    assert found[1].state.step == 4
    if harm != "manifest":
        assert "checkpoint step-00000008 is damaged (rank-1.pt" in passed_over[0]


def test_when_every_checkpoint_is_damaged_training_does_not_silently_begin_anew(
    checkpoints: Location, commit
) -> None:
    (commit(4) / "rank-0.pt").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"every checkpoint .* is damaged.*remove that folder"
    ):
        newest(checkpoints)


def test_without_any_checkpoint_training_begins(checkpoints: Location) -> None:
    assert newest(checkpoints) == (None, [])


def test_another_format_is_refused_never_deleted(checkpoints: Location, commit) -> None:
    commit(4, format=99)
    with pytest.raises(CheckpointError, match="has checkpoint format 99, this version reads 1"):
        committed(checkpoints)
    assert collect_orphans(checkpoints) == []
    assert (checkpoints / tag_of(4) / MANIFEST_NAME).exists()


def test_damage_is_named_by_file_and_kind(commit) -> None:
    folder = commit(4)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert damage(folder, manifest, hashes=True) is None
    (folder / "rank-0.pt").write_bytes(b"short")
    assert "rank-0.pt has 5 bytes, the manifest says" in str(damage(folder, manifest, hashes=False))


def test_zero_files_fit_their_own_world_size_only(commit) -> None:
    manifest = read_manifest(commit(4, world_size=2))
    assert manifest is not None
    assert must_reshard(manifest, 3)
    assert not must_reshard(manifest, 2)


def test_orphans_are_collected_and_nothing_else(checkpoints: Location, commit) -> None:
    commit(4)
    (commit(8) / MANIFEST_NAME).delete()
    (checkpoints / "notes.txt").write_text("the user's own")
    assert collect_orphans(checkpoints) == ["step-00000008"]
    assert [entry.name for entry in checkpoints.list()] == ["notes.txt", "step-00000004"]


def test_the_newest_and_the_best_stay(checkpoints: Location, commit) -> None:
    for step in (2, 4, 6, 8, 10):
        commit(step)
    assert collect(checkpoints, 2, step=10, best_step=4) == ["step-00000002", "step-00000006"]
    assert [manifest.state.step for _, manifest in committed(checkpoints)] == [4, 8, 10]


def test_checkpoints_of_an_undone_future_go_when_the_present_is_safe(
    checkpoints: Location, commit
) -> None:
    """Training went back to step 4 because 10 was damaged, and has now saved step 7."""
    for step in (4, 7, 10):
        commit(step)
    collect(checkpoints, 1, step=7, best_step=None)
    assert [manifest.state.step for _, manifest in committed(checkpoints)] == [7]
