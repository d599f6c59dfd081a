"""What `doctor` checks of the machine: memory, disks, folders, ports, limits, clock."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
import uuid
from pathlib import Path

from heliostat.cluster.finding import Finding
from heliostat.cluster.ray_internals import sessions_folder
from heliostat.config.settings import settings
from heliostat.errors import HeliostatError
from heliostat.storage import Location

_LEAST_FREE_MEMORY = 2e9
_LEAST_SHARED_MEMORY = 1e9
_FULL_DISK = 0.95
_LEAST_FILES = 4096
_MOST_CLOCK_DRIFT_S = 2.0
PORTS = {8265: "Ray's dashboard", 8000: "endpoints of `heliostat serve`"}


def check_memory() -> Finding:
    """Free memory; Ray kills workers when 95 % is taken."""
    import psutil

    memory = psutil.virtual_memory()
    detail = f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB"
    if memory.available < _LEAST_FREE_MEMORY:
        return Finding(
            "memory",
            "warn",
            f"{detail}; Ray needs about 2 GB and kills workers at 95 %",
            "end other programs, or train on another machine",
        )
    return Finding("memory", "ok", detail)


def check_shared_memory() -> Finding:
    """/dev/shm, where Ray's object store and NCCL put their buffers."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("shared memory", "ok", "no /dev/shm; Ray uses a temporary folder")
    usage = shutil.disk_usage(folder)
    detail = f"/dev/shm has {usage.free / 1e9:.1f} GB free of {usage.total / 1e9:.1f} GB"
    if usage.free < _LEAST_SHARED_MEMORY:
        return Finding(
            "shared memory",
            "warn",
            f"{detail}; Ray's object store falls back to the disk and NCCL may fail",
            "docker run --shm-size=8g, or in Kubernetes an emptyDir with medium Memory at /dev/shm",
        )
    return Finding("shared memory", "ok", detail)


def check_disks() -> list[Finding]:
    """The disks of our home and of Ray's temporary files; Ray slows down above 95 %."""
    folders = {"home": settings().home, "Ray's sessions": sessions_folder()}
    return [_check_disk(name, _existing(folder)) for name, folder in folders.items()]


def check_home() -> Finding:
    """Whether our own folder can be written."""
    return check_writable("home", Location.of(settings().home), "set HELIOSTAT_HOME")


def check_storage(location: Location) -> Finding:
    """Whether runs can be stored where the user wants them."""
    return check_writable("storage", location, "check its address, credentials and rights")


def check_writable(name: str, location: Location, remedy: str) -> Finding:
    """Write, read back and delete a small file."""
    probe = location / f".doctor-{uuid.uuid4().hex}"
    content = uuid.uuid4().bytes
    try:
        probe.write_bytes(content)
        same = probe.read_bytes() == content
        probe.delete()
    except (HeliostatError, OSError) as error:
        return Finding(name, "fail", f"{location.uri} cannot be written: {error}", remedy)
    if not same:
        return Finding(name, "fail", f"{location.uri} gives back other bytes than written", remedy)
    return Finding(name, "ok", f"{location.uri} can be written")


def check_ports() -> list[Finding]:
    """Whether the usual ports are free."""
    return [_check_port(port, purpose) for port, purpose in PORTS.items()]


def check_open_files() -> Finding:
    """The limit of open files; Ray opens thousands on a busy node."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Ray raises the soft limit up to 65,536 by itself.
    reachable = max(soft, min(hard, 65_536))
    if 0 <= reachable < _LEAST_FILES:
        return Finding(
            "open files",
            "warn",
            f"at most {reachable} files may be open; Ray may fail to connect",
            "ulimit -n 65536, or raise nofile in /etc/security/limits.conf",
        )
    return Finding("open files", "ok", f"{soft} may be open, raised to {reachable} by Ray")


def check_clock() -> Finding:
    """The clock against the date of our own files and against the file system's clock."""
    now = time.time()
    installed = Path(__file__).stat().st_mtime
    if now < installed - _MOST_CLOCK_DRIFT_S:
        return Finding(
            "clock",
            "fail",
            f"it is {time.ctime(now)} here, but heliostat was installed on {time.ctime(installed)}",
            "set the clock (timedatectl set-ntp true); object stores refuse wrong times",
        )
    with tempfile.NamedTemporaryFile(dir=_existing(settings().home)) as file:
        drift = abs(Path(file.name).stat().st_mtime - time.time())
    if drift > _MOST_CLOCK_DRIFT_S:
        return Finding(
            "clock",
            "warn",
            f"the file server of {settings().home} is {drift:.0f} s away from this machine's clock",
            "set both clocks by NTP",
        )
    return Finding("clock", "ok", f"{time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(now))}")


def _check_disk(name: str, folder: Path) -> Finding:
    usage = shutil.disk_usage(folder)
    # As Ray reckons: what is reserved for root counts as taken.
    full = 1 - usage.free / usage.total
    detail = f"{folder} ({name}): {usage.free / 1e9:.1f} GB free, {full:.0%} taken"
    if full > _FULL_DISK:
        return Finding(
            "disk",
            "fail",
            f"{detail}; above 95 % Ray stops putting objects there",
            f"free some space; old sessions are in {sessions_folder()}",
        )
    return Finding("disk", "ok", detail)


def _check_port(port: int, purpose: str) -> Finding:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Finding(
                "ports",
                "warn",
                f"port {port} ({purpose}) is taken: {error.strerror}",
                f"see who listens with `ss -ltnp sport = :{port}`; Ray takes the next free port "
                "for its dashboard, an endpoint needs another serve.http.port=",
            )
    return Finding("ports", "ok", f"port {port} ({purpose}) is free")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())
