"""Getting hold of a Ray cluster: connect to one, or start one on this machine, quietly.

Workers import the job by name. Ray puts the driver's current folder on their path, and a submitted
working directory first, so nothing is shipped from here: `heliostat.config.settings.put_on_path`
does for the driver what Ray does for its workers.

What Ray prints is kept off the console: `fit` shows progress itself and every error comes back as
an exception. A cluster of our own has no dashboard unless Serve needs it: its processes would take
a tenth of a small machine from the training. Who wants to look runs `ray start --head` first.
"""

from __future__ import annotations

import ctypes
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from heliostat.cluster import ray_internals
from heliostat.cluster.cluster_reader import logical_cpus
from heliostat.config.settings import settings
from heliostat.errors import UserError

_PROBE_TIMEOUT_S = 3.0
_started: str | None = None
"""Address of the cluster that this process started last."""


@dataclass(frozen=True)
class Connection:
    """The cluster this process is connected to."""

    address: str
    """`host:port` of the cluster's control store."""
    dashboard_url: str | None
    is_own: bool
    """Whether `connect` started it, so that it ends with this process."""

    def close(self) -> None:
        """Disconnect; a cluster of our own ends."""
        import ray

        ray.shutdown()


def connect(address: str | None = None, *, dashboard: bool = False) -> Connection:
    """Connect to a cluster, or start one on this machine; a second call returns the same one.

    Args:
        address: `host:port` of a running cluster; `local` for one of our own whatever else runs;
            None for RAY_ADDRESS, else the cluster that `ray start` made here, else one of our own.
        dashboard: whether a cluster of our own gets the dashboard, through which Serve is deployed.

    Raises:
        UserError: the address is of the wrong kind, nothing answers, or versions do not match.
    """
    import ray

    if ray.is_initialized():
        with _signal_handlers_kept():
            context = ray.init(ignore_reinit_error=True, configure_logging=False)
        return _connection(context.address_info, is_own=False)
    target = address or settings().ray_address or _running_here() or "local"
    if target == "auto":
        target = _running_here() or "local"
    # Ray's child processes inherit it; without it Ray prints a notice on data collection.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with _signal_handlers_kept():
        return _start(dashboard) if target == "local" else _join(target)


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Ray makes SIGTERM exit at once with status 15; what it means is for the command to say."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def owns_cluster() -> bool:
    """Whether the cluster that this process is connected to was started by it."""
    import ray

    if _started is None or not ray.is_initialized():
        return False
    return bool(ray.get_runtime_context().gcs_address == _started)


def own_address() -> str | None:
    """The address of the cluster if this process started it, or shares it with who did."""
    return _started if owns_cluster() else None


def share_cluster(address: str | None) -> None:
    """Say, in a process of a cluster, that the cluster ends with the process that started it.

    Args:
        address: what `own_address` said there.
    """
    global _started
    _started = address


def _start(dashboard: bool) -> Connection:
    import ray

    global _started
    _provide_token()
    with nullcontext() if dashboard else ray_internals.without_helpers():
        context = ray.init(
            address="local",
            num_cpus=logical_cpus(),
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _system_config=None if dashboard else ray_internals.QUIET_CONFIG,
        )
    _started = context.address_info["gcs_address"]
    return _connection(context.address_info, is_own=True)


def _join(address: str) -> Connection:
    import ray

    _require_address(address)
    try:
        context = ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        # Other versions of Ray or Python, a missing token, a machine that is no node of the
        # cluster: each comes with a text that says so.
        reason = " ".join(str(error).split())
        raise UserError(f"cannot join the Ray cluster at {address}: {reason}") from error
    return _connection(context.address_info, is_own=False)


def _require_address(address: str) -> None:
    """Refuse, in a second, what `ray.init` would try for a minute."""
    if "://" in address:
        raise UserError(
            f"Ray address is {address}, but training connects to a cluster's own address such as "
            "10.0.0.1:6379 from one of its nodes; from outside, submit the job: "
            "ray job submit --address http://HOST:8265 --working-dir . -- heliostat train NAME"
        )
    try:
        socket.create_connection(split_address(address), timeout=_PROBE_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error}): start one with "
            "`ray start --head`, or unset RAY_ADDRESS to use this machine alone"
        ) from None


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; raises `UserError` for anything else."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise UserError(f"Ray address is {address}, but expected HOST:PORT such as 10.0.0.1:6379")
    return host.strip("[]"), int(port)


def _running_here() -> str | None:
    """The cluster of `ray start` on this machine, if it still answers."""
    address = ray_internals.started_cluster_address()
    if address is None:
        return None
    try:
        socket.create_connection(split_address(address), timeout=_PROBE_TIMEOUT_S).close()
    except (OSError, UserError):
        return None
    return address


def present_token() -> None:
    """Let Ray's HTTP clients in this process show the token that is at hand, ours if no other.

    Of itself a client sends none before it is told that the cluster wants one.
    """
    ours = _token_file()
    if not ray_internals.has_auth_token() and ours.is_file():
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(ours)
        ray_internals.forget_auth_token()
    ray_internals.use_auth_token()


def _token_file() -> Path:
    return settings().home / "ray_token"


def _provide_token() -> None:
    """Give a cluster of our own its token from our folder, so that none lands in `~/.ray`.

    A new local cluster demands a token since Ray 2.60 and would write a new one to the user's home.
    """
    from ray.exceptions import AuthenticationError

    try:
        if ray_internals.has_auth_token():
            return
    except AuthenticationError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{reason} Or unset RAY_AUTH_TOKEN_PATH.") from None
    path = _token_file()
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))
        temporary.replace(path)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    ray_internals.forget_auth_token()


def _connection(address_info: dict[str, str], *, is_own: bool) -> Connection:
    url = address_info.get("webui_url")
    return Connection(
        address=address_info["gcs_address"],
        dashboard_url=f"http://{url}" if url else None,
        is_own=is_own,
    )


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP = {_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 2**31 - 1}
"""Numbers of `malloc.h`, and bytes: the largest that glibc takes."""


def enter_worker(*, gpu: bool) -> None:
    """Prepare this process for training or prediction; called first by what runs in a worker.

    Args:
        gpu: whether the worker was given a GPU.
    """
    os.environ.update(worker_environment(gpu))
    if not gpu:
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let the allocator keep what a step frees for the next step.

    glibc gives large blocks back to the system, which hands them out again zeroed, page by page:
    thousands of page faults a step. Other allocators have no `mallopt`, or ignore it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, size in _KEEP.items():
            mallopt(parameter, size)


def worker_runtime_env(*, gpu: bool) -> dict[str, dict[str, str]]:
    """The runtime environment of a worker: one of its own only for workers with a GPU.

    Ray cannot use a process that waits already for what has a runtime environment, and with a GPU
    it must not: a process that once looked for GPUs without having one never sees any.
    """
    return {"env_vars": worker_environment(gpu)} if gpu else {}


def worker_environment(gpu: bool) -> dict[str, str]:
    """Variables of every process that trains or predicts.

    Args:
        gpu: whether it was given a GPU.
    """
    variables = {
        # DeepSpeed loads its checkpoints with full unpickling unless this forbids it.
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
        # Workers fork for data loading; a forked tokenizer with threads deadlocks.
        "TOKENIZERS_PARALLELISM": "false",
        # Two torch versions, or a CPU and a CUDA build, must never share compiled extensions.
        "TORCH_EXTENSIONS_DIR": str(extensions_folder()),
    }
    if not gpu:
        # Detection would take the GPU of a GPU node although none was asked for.
        variables["DS_ACCELERATOR"] = "cpu"
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables


def extensions_folder() -> Path:
    """Where torch extensions of exactly this environment are built."""
    from importlib.metadata import version

    tag = f"py{sys.version_info.major}{sys.version_info.minor}"
    build = f"torch{version('torch')}-deepspeed{version('deepspeed')}-{tag}"
    return settings().home / "torch_extensions" / build
