"""What is wrong with this environment, and how to mend it, in a few seconds.

Every check is a function that gives findings. One that fails itself becomes a finding too, so the
report is always whole. Nothing is started or changed; probe files are removed again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from heliostat.cluster import doctor_machine, doctor_ray, doctor_software
from heliostat.cluster.finding import Finding, Status
from heliostat.storage import Location

__all__ = ["Finding", "Status", "run_doctor"]

CHECKS: dict[str, Callable[[], Finding | list[Finding]]] = {
    "python": doctor_software.check_python,
    "versions": doctor_software.check_versions,
    "source": doctor_software.check_source,
    "package": doctor_software.check_package,
    "names": doctor_software.check_shadowing,
    "devices": doctor_software.check_torch,
    "compilers": doctor_software.check_compilers,
    "build locks": doctor_software.check_build_locks,
    "memory": doctor_machine.check_memory,
    "shared memory": doctor_machine.check_shared_memory,
    "disk": doctor_machine.check_disks,
    "home": doctor_machine.check_home,
    "ports": doctor_machine.check_ports,
    "open files": doctor_machine.check_open_files,
    "clock": doctor_machine.check_clock,
    "ray": doctor_ray.check_ray,
}


def run_doctor(storage: Location | None = None) -> list[Finding]:
    """Look at everything that training needs; never raises.

    Args:
        storage: where runs are to be stored; None leaves that out.
    """
    checks = dict(CHECKS)
    if storage is not None:
        checks["storage"] = partial(doctor_machine.check_storage, storage)
    return [finding for name, check in checks.items() for finding in _run(name, check)]


def _run(name: str, check: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    try:
        found = check()
    except Exception as error:  # The rest of the report is still worth having.
        reason = f"{type(error).__name__}: {error}"
        return [
            Finding(
                name,
                "fail",
                f"cannot be checked ({reason})",
                "mend that first: whatever training needs of it fails in the same way",
            )
        ]
    return found if isinstance(found, list) else [found]
