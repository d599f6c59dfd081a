"""Find the newest checkpoint that is whole, bring it to the node, and load it.

The file hashes are checked before anything is loaded, shared out over the ranks. A checkpoint that
fails the check is passed over for the one before it, and the user is told. When the world size has
changed, ZeRO's shards are first converted to DeepSpeed's universal format, in a process of its own.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heliostat.checkpoint.manifest import Manifest, committed, damage, read_manifest
from heliostat.checkpoint.safe_load import allow_deepspeed_types
from heliostat.errors import CheckpointError
from heliostat.storage import Location

RESHARD_TIMEOUT_S = 3600


def newest_whole(
    checkpoints: Location,
    rank: int,
    world_size: int,
    broadcast: Callable[[Any], Any],
    gather: Callable[[Any], list[Any]],
) -> tuple[tuple[Location, Manifest] | None, list[str]]:
    """The newest committed checkpoint whose files all match their hashes, None if there is none.

    Called by all ranks. Also returns, for each newer checkpoint that was passed over, why.

    Raises `CheckpointError` when there are checkpoints but every one is damaged: to begin anew is
    for the user to say.

    Args:
        checkpoints: the folder of all checkpoints.
        rank: of the caller.
        world_size: number of ranks.
        broadcast: a collective that gives every rank the value of rank 0.
        gather: a collective that gives every rank the values of all.
    """
    entries = broadcast(committed(checkpoints) if rank == 0 else None)
    passed_over: list[str] = []
    for folder, manifest in reversed(entries):
        problem = _damage_found(folder, manifest, rank, world_size, gather)
        if problem is None:
            return (folder, manifest), passed_over
        passed_over.append(f"checkpoint {folder.name} is damaged ({problem})")
    if passed_over:
        raise CheckpointError(
            f"every checkpoint in {checkpoints.uri} is damaged: {'; '.join(passed_over)}; "
            "remove that folder to train from the beginning"
        )
    return None, []


def whole(
    folder: Location,
    rank: int,
    world_size: int,
    broadcast: Callable[[Any], Any],
    gather: Callable[[Any], list[Any]],
) -> tuple[Location, Manifest]:
    """One checkpoint, if all its files match their hashes. Called by all ranks.

    Raises `CheckpointError`. The arguments are those of `newest_whole`.
    """
    manifest: Manifest | None = broadcast(read_manifest(folder) if rank == 0 else None)
    if manifest is None:
        raise CheckpointError(f"there is no committed checkpoint {folder.uri} to go on from")
    problem = _damage_found(folder, manifest, rank, world_size, gather)
    if problem is not None:
        raise CheckpointError(f"checkpoint {folder.uri} is damaged ({problem})")
    return folder, manifest


def _damage_found(
    folder: Location,
    manifest: Manifest,
    rank: int,
    world_size: int,
    gather: Callable[[Any], list[Any]],
) -> str | None:
    """What is wrong with a checkpoint, its files shared out over the ranks; None if nothing is."""
    mine = replace(manifest, files=manifest.files[rank::world_size])
    problems = [text for text in gather(damage(folder, mine, hashes=True)) if text]
    return problems[0] if problems else None


def fetch(folder: Location, scratch: Path, is_first_on_node: bool) -> Path:
    """The folder that holds the checkpoint's folder, on this node's disk.

    The caller puts a barrier behind it: only one rank a node copies.
    """
    if folder.is_local:
        return folder.local_path.parent
    if is_first_on_node:
        folder.download(scratch / folder.name)
    return scratch


def must_reshard(manifest: Manifest, world_size: int) -> bool:
    """Whether plain loading cannot work: ZeRO's files are cut for the old world size."""
    return manifest.zero_stage > 0 and manifest.world_size != world_size


def reshard(parent: Path, tag: str, scratch: Path, is_first_on_node: bool) -> Path:
    """Convert to the universal format; returns the folder that holds the converted checkpoint.

    The caller puts a barrier behind it.
    """
    target = scratch / "universal"
    if is_first_on_node:
        command = [sys.executable, "-m", "heliostat.checkpoint.reshard"]
        done = subprocess.run(
            [*command, str(parent / tag), str(target / tag)],
            capture_output=True,
            text=True,
            timeout=RESHARD_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise CheckpointError(
                f"checkpoint {parent / tag} could not be converted for another number of workers: "
                f"{done.stderr.strip()[-2000:]}"
            )
    return target


def load(engine: Any, parent: Path, tag: str) -> None:
    """Load model, optimiser and loss scale into a fresh engine. Called by all ranks."""
    settings = [_settings(group) for group in engine.optimizer.param_groups]
    with allow_deepspeed_types():
        path, _ = engine.load_checkpoint(str(parent), tag=tag, load_lr_scheduler_states=False)
    if path is None:
        raise CheckpointError(f"DeepSpeed found no checkpoint {tag} in {parent}")
    _mend_optimizer(engine, settings)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """What the config says of a parameter group."""
    return {name: value for name, value in group.items() if name != "params"}


def _mend_optimizer(engine: Any, settings: list[dict[str, Any]]) -> None:
    """Undo what DeepSpeed 0.19.8 does to the optimiser when it loads ZeRO-3's universal format.

    It gives every group the settings of the first, so that biases would decay, and all parameters
    one tensor as their step count, which torch's optimisers would then raise many times a step.
    """
    for group, own in zip(engine.optimizer.param_groups, settings, strict=True):
        group.update(own)
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()


def random_state() -> dict[str, Any]:
    """This process's random states as tensors and plain containers, for safe loading."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
        "numpy": [str(name), [int(key) for key in keys], position, has_gauss, cached],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(path: Path) -> None:
    """Put back what `random_state` saved."""
    state = torch.load(path, weights_only=True)
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
