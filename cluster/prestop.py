"""What a node does before it is taken away, so that no work is lost: `preStop` of a pod.

    python prestop.py head --seconds 240
    python prestop.py worker --seconds 240

On the head node every driver of a submitted job gets SIGTERM: `heliostat train` saves a checkpoint,
stops and exits with 130, which counts as failed, so that a RayJob tries again. (`ray job stop`
would end it as stopped, and nothing would go on.) A worker node is marked as draining: the training
that has a rank on it saves a checkpoint at once and goes on until the node is gone. Returns as soon
as the jobs have ended or the node has emptied itself, or else after so many seconds.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

logger = logging.getLogger("prestop")

POLL_S = 0.5
REASON = "DRAIN_NODE_REASON_PREEMPTION"


def main() -> int:
    """Leave the cluster in the role given on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("role", choices=("head", "worker"))
    parser.add_argument("--seconds", type=int, default=240, help="the longest it may take")
    parser.add_argument("--dashboard", default="http://127.0.0.1:8265", help="of this head node")
    parser.add_argument("--address", help="of the cluster; default: RAY_ADDRESS")
    parser.add_argument("--node-id", help="of the worker node; default: this one")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    if given.role == "head":
        is_done = stop_drivers(given.dashboard, given.seconds)
    else:
        is_done = drain(given.address, given.node_id or own_node_id(given.address), given.seconds)
    if not is_done:
        logger.warning("still busy after %d s", given.seconds)
    return 0 if is_done else 1


def stop_drivers(dashboard: str, seconds: int) -> bool:
    """Ask the drivers of all submitted jobs to save and end; returns whether all did."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(dashboard)
    running = [job for job in client.list_jobs() if not job.status.is_terminal()]
    for job in running:
        if job.driver_info is not None:
            logger.info("asking the driver of %s to save and end", job.submission_id)
            os.kill(int(job.driver_info.pid), signal.SIGTERM)
    names = [job.submission_id for job in running if job.submission_id is not None]
    return wait_until(
        lambda: all(client.get_job_status(name).is_terminal() for name in names), seconds
    )


def drain(address: str | None, node_id: str, seconds: int) -> bool:
    """Mark a node as leaving and wait until it is empty; returns whether it is."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--node-id", node_id]
    command += ["--reason", REASON, "--reason-message", "the node is being stopped"]
    command += ["--deadline-remaining-seconds", str(seconds)]
    command += ["--address", address] if address else []
    subprocess.run(command, check=True)
    return wait_until(lambda: not runs_here(node_id), seconds)


def own_node_id(address: str | None) -> str:
    """The id of the Ray node on this machine."""
    import ray

    ray.init(address=address or "auto", log_to_driver=False)
    node_id = ray.get_runtime_context().get_node_id()
    ray.shutdown()
    return str(node_id)


def runs_here(node_id: str) -> bool:
    """Whether the node's raylet lives: it ends by itself once the node is draining and empty."""
    import psutil

    processes = psutil.process_iter(["name", "cmdline"])
    return any(
        process.info["name"] == "raylet" and node_id in " ".join(process.info["cmdline"] or ())
        for process in processes
    )


def wait_until(is_true: Callable[[], bool], seconds: int) -> bool:
    """Poll until something is true; returns whether it became so in time."""
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


if __name__ == "__main__":
    sys.exit(main())
