"""What a result depends on besides its config: versions, hardware and the state of the code.

Nothing here imports a heavy library: versions come from package metadata, GPUs from `nvidia-smi`.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PACKAGES = ("heliostat", "ray", "torch", "deepspeed", "transformers")
_PATIENCE_S = 10.0


def versions() -> dict[str, str]:
    """The versions that matter for a result; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, object]:
    """This machine, and the Ray cluster when this process is connected to one."""
    import psutil

    machine: dict[str, object] = {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cpus": psutil.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": _gpus(),
    }
    cluster = _ray_cluster()
    return {**machine, "cluster": cluster} if cluster else machine


def code_state(folder: Path) -> dict[str, object]:
    """The git commit that is checked out in a folder and whether files differ from it."""
    commit = _output(["git", "-C", str(folder), "rev-parse", "HEAD"])
    changed = _output(["git", "-C", str(folder), "status", "--porcelain"])
    if commit is None:
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    listing = _output(
        ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    )
    return listing.splitlines() if listing else []


def _ray_cluster() -> dict[str, object] | None:
    # Looked up, not imported: importing Ray takes seconds and connects to nothing by itself.
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    alive = [node for node in ray.nodes() if node["Alive"]]
    totals = ray.cluster_resources()
    resources = {name: totals[name] for name in sorted(totals) if ":" not in name}
    return {"nodes": len(alive), "resources": resources}


def _output(command: list[str]) -> str | None:
    """What a command prints, or None when it is missing, fails or takes too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
