"""Processes of a cluster of our own import what training needs before training is called for.

A worker without a GPU gets a process that waits, if there is one, and what the process has imported
stays imported. So the imports happen while the driver still reads its config and prepares data.
Nothing heavy is imported here: the driver calls this as soon as Ray is there.
"""

from __future__ import annotations


def warm_up(workers: int) -> None:
    """Prepare as many processes as a training with so many workers takes; does not wait."""
    import ray

    prepare = ray.remote(num_cpus=0)(_prepare)
    # One more for Ray Train's controller.
    for _ in range(workers + 1):
        prepare.remote()


def _prepare() -> None:
    from heliostat.train.worker import prepare_process

    prepare_process(gpu=False)
