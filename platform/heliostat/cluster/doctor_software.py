"""What `doctor` checks of the installed software: versions, imports, torch, compilers, locks."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from heliostat.cluster.build_locks import (
    BUILD_LIMIT_S,
    extension_folders,
    find_build_locks,
)
from heliostat.cluster.finding import Finding
from heliostat.cluster.hardware import find_device
from heliostat.cluster.package_size import check_package_size
from heliostat.errors import UserError

_DISTRIBUTION = "heliostat"


def check_python() -> Finding:
    """Python's version against the one our distribution asks for."""
    from packaging.specifiers import SpecifierSet

    version = ".".join(str(part) for part in sys.version_info[:3])
    wanted = metadata.metadata(_DISTRIBUTION)["Requires-Python"]
    if SpecifierSet(wanted).contains(version):
        return Finding("python", "ok", f"{version} at {sys.executable}")
    return Finding(
        "python",
        "fail",
        f"{version}, but heliostat needs {wanted}",
        "make a virtual environment with that Python and install heliostat there",
    )


def check_versions() -> list[Finding]:
    """Every installed distribution that ours names, against the version it asks for."""
    from packaging.requirements import Requirement

    requirements = [Requirement(text) for text in metadata.requires(_DISTRIBUTION) or []]
    asked = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    findings = [
        finding for requirement in asked if (finding := _check_version(requirement)) is not None
    ]
    return findings or [Finding("versions", "ok", f"all {len(asked)} requirements are met")]


def check_source() -> Finding:
    """Whether the code that runs is the checkout the user stands in."""
    import heliostat

    running = Path(heliostat.__path__[0]).resolve()
    here = Path.cwd() / "platform" / "heliostat"
    if here.is_dir() and here.resolve() != running:
        return Finding(
            "source",
            "warn",
            f"heliostat is imported from {running}, not from this checkout: edits in "
            f"{here} have no effect",
            "pip install -e . here, or add its platform/ folder to PYTHONPATH",
        )
    return Finding("source", "ok", f"heliostat is imported from {running}")


def check_package() -> Finding:
    """Whether `ray job submit --working-dir .` could send this folder."""
    here = Path.cwd()
    if not (here / "jobs").is_dir():
        return Finding("package", "ok", "no jobs/ in this folder, so there is nothing to submit")
    try:
        size = check_package_size(here)
    except UserError as error:
        return Finding("package", "warn", str(error), "list them in .rayignore, or submit less")
    return Finding("package", "ok", f"ray job submit would send {size / 2**20:.1f} MiB")


def check_shadowing(folders: Iterable[Path] | None = None) -> Finding:
    """Files that hide a module of the standard library, such as `platform/__init__.py`.

    Args:
        folders: None for those of `sys.path` outside the installation, and the current one, which
            comes first on the path of every Ray worker.
    """
    looked_in = _own_folders() if folders is None else list(folders)
    shadows = [
        path
        for folder in looked_in
        for name in sorted(sys.stdlib_module_names)
        for path in (folder / f"{name}.py", folder / name / "__init__.py")
        if path.is_file()
    ]
    if not shadows:
        return Finding("names", "ok", "no file hides a module of the standard library")
    return Finding(
        "names",
        "fail",
        f"{', '.join(str(path) for path in shadows)} hides the standard library's module of that "
        "name, so torch and Ray cannot be imported from there",
        "delete or rename it",
    )


def check_torch() -> Finding:
    """torch's build, and the devices it sees."""
    import torch

    build = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        version = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        nccl = ".".join(str(part) for part in version)
        detail = f"{build}, CUDA {torch.version.cuda}, NCCL {nccl}: {', '.join(names)}"
        unknown = sorted({name for name in names if find_device(name) is None})
        if unknown:
            detail += f"; no MFU is shown on {', '.join(unknown)}, whose peak is not known"
        return Finding("devices", "ok", detail)
    if shutil.which("nvidia-smi") is None:
        return Finding("devices", "ok", f"{build}: no GPU, training runs on the CPU (gloo)")
    if torch.version.cuda is None:
        return Finding(
            "devices",
            "warn",
            f"{build} is a CPU build, but this machine has an NVIDIA driver",
            "install the CUDA build of the same torch version",
        )
    return Finding(
        "devices",
        "fail",
        f"{build} was built for CUDA {torch.version.cuda}, but sees no GPU",
        "compare `nvidia-smi` with that CUDA version, and see that CUDA_VISIBLE_DEVICES is not set",
    )


def check_compilers() -> Finding:
    """Compilers, which nothing needs by default."""
    found = [name for name in ("g++", "ninja", "nvcc") if shutil.which(name)]
    missing = [name for name in ("g++", "ninja", "nvcc") if name not in found]
    have = f"found {', '.join(found)}" if found else "none found"
    lack = f", not {', '.join(missing)}" if found and missing else ""
    return Finding("compilers", "ok", f"{have}{lack}; only compile=true needs one, and that g++")


def check_build_locks() -> Finding:
    """Locks of torch extensions whose builder died."""
    folders = extension_folders()
    locks = find_build_locks(folders)
    stale = [lock for lock in locks if lock.is_stale(BUILD_LIMIT_S)]
    if stale:
        listed = ", ".join(f"{lock.path} ({lock.age_s / 60:.0f} min old)" for lock in stale)
        return Finding(
            "build locks",
            "fail",
            f"a build that died left {listed}; whoever needs that extension waits for ever",
            f"rm {' '.join(str(lock.path) for lock in stale)}",
        )
    if locks:
        return Finding("build locks", "ok", f"{len(locks)} build(s) going on: {locks[0].path}")
    return Finding("build locks", "ok", f"none in {' or '.join(str(f) for f in folders)}")


def _check_version(requirement: object) -> Finding | None:
    from packaging.requirements import Requirement

    assert isinstance(requirement, Requirement)
    wanted = f"{requirement.name}{requirement.specifier}"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding("versions", "fail", f"{wanted} is not installed", f"pip install '{wanted}'")
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return Finding(
        "versions",
        "fail",
        f"{requirement.name} is {version}, but heliostat is tested with {wanted}",
        f"pip install '{wanted}'",
    )


def _own_folders() -> list[Path]:
    installation = [Path(prefix).resolve() for prefix in {sys.prefix, sys.base_prefix}]
    folders = dict.fromkeys([Path.cwd(), *(Path(entry or ".").resolve() for entry in sys.path)])
    return [
        folder
        for folder in folders
        if folder.is_dir() and not any(folder.is_relative_to(prefix) for prefix in installation)
    ]
