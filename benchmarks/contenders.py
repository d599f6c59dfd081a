"""The trainings that are compared, each the main program of processes of its own.

    python -m benchmarks.contenders heliostat WORKERS SIZE STEPS SAVE_EVERY STAMPS
    torchrun --nproc-per-node WORKERS -m benchmarks.contenders bare WORKERS SIZE ...
    torchrun --nproc-per-node WORKERS -m benchmarks.contenders trainer WORKERS SIZE ...

`bare` is what one writes by hand around `deepspeed.initialize`; `trainer` is Hugging Face's Trainer
with the same DeepSpeed configuration.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import workload
from benchmarks.workload import Size, StampedTask
from heliostat.config.int_range import IntRange
from heliostat.config.resources import ResourcesConfig, TrackerConfig
from heliostat.storage import Location


@dataclass(frozen=True)
class Wish:
    """What to train, and for how long."""

    task: StampedTask
    size: Size
    workers: int
    steps: int
    save_every: int
    """Steps between checkpoints."""


def heliostat(wish: Wish) -> None:
    """`fit` on a Ray cluster of its own, in a run of its own, as a job does it."""
    from heliostat.cluster.ray_cluster import connect
    from heliostat.runs.run import Run
    from heliostat.train.fit import fit

    with tempfile.TemporaryDirectory(prefix="heliostat-benchmark-") as folder:
        run = Run.create(
            Location.of(folder),
            "benchmark",
            name=None,
            resolved_yaml="{}\n",
            digest="0" * 12,
            seed=0,
            tracker=TrackerConfig(),
        )
        connection = connect("local")
        try:
            with run:
                fit(
                    wish.task,
                    workload.fit_config(wish.size, wish.steps, wish.save_every),
                    run=run,
                    resources=ResourcesConfig(workers=IntRange(wish.workers, wish.workers)),
                )
        finally:
            connection.close()


def bare(wish: Wish) -> None:
    """A DeepSpeed loop: rows in memory, forward, backward, step, and a save that blocks."""
    engine, rank, accumulation = _bare_engine(wish)
    data = workload.rows(wish.task)
    workers, micro_batch = wish.workers, wish.size.micro_batch
    position = 0
    with tempfile.TemporaryDirectory(prefix="heliostat-benchmark-") as folder:
        for step in range(1, wish.steps + 1):
            for micro in range(accumulation):
                start = position + rank + micro * micro_batch * workers
                at = range(start, start + micro_batch * workers, workers)
                mine = [index % len(data["labels"]) for index in at]
                loss = engine(**{name: value[mine] for name, value in data.items()})["loss"]
                engine.backward(loss)
                engine.step()
            position += wish.size.batch
            if rank == 0 and step % 10 == 1:
                print(f"step {step} loss {loss.item():.6f}")
            if step % wish.save_every == 0:
                engine.save_checkpoint(folder, tag=f"step-{step}")
                shutil.rmtree(Path(folder) / f"step-{step - wish.save_every}", ignore_errors=True)


def _bare_engine(wish: Wish) -> tuple[Any, int, int]:
    import torch

    from heliostat.train.engine import prepare_deepspeed

    prepare_deepspeed()
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    torch.manual_seed(0)
    model = workload.WithLoss(wish.task)
    configuration = _deepspeed(wish.size, wish.workers)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=_optimizer(wish.task, model), config=configuration
    )
    return engine, torch.distributed.get_rank(), configuration["gradient_accumulation_steps"]


def trainer(wish: Wish) -> None:
    """Hugging Face's Trainer with DeepSpeed."""
    from heliostat.train.engine import prepare_deepspeed

    prepare_deepspeed()
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainingArguments

    data = workload.rows(wish.task)

    class Rows(Dataset[dict[str, Any]]):
        """The rows, one by one."""

        def __len__(self) -> int:
            return len(data["labels"])

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {name: value[index] for name, value in data.items()}

    size = wish.size
    optimizer = workload.fit_config(size, wish.steps, wish.steps).optimizer
    with tempfile.TemporaryDirectory(prefix="heliostat-benchmark-") as folder:
        configuration = _deepspeed(size, wish.workers)
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=size.micro_batch,
            gradient_accumulation_steps=configuration["gradient_accumulation_steps"],
            max_steps=wish.steps,
            max_grad_norm=configuration["gradient_clipping"],
            learning_rate=optimizer.lr,
            weight_decay=optimizer.weight_decay,
            adam_beta2=optimizer.beta2,
            lr_scheduler_type="constant",
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
            deepspeed=configuration,
        )
        Trainer(model=workload.WithLoss(wish.task), args=arguments, train_dataset=Rows()).train()


def _optimizer(task: StampedTask, model: Any) -> Any:
    from heliostat.train.engine import build_optimizer

    settings = workload.fit_config(workload.LAPTOP, 1, 1).optimizer
    return build_optimizer(task.parameter_groups(model), settings)


def _deepspeed(size: Size, workers: int) -> dict[str, Any]:
    return {
        "train_batch_size": size.batch,
        "train_micro_batch_size_per_gpu": size.micro_batch,
        "gradient_accumulation_steps": size.batch // size.micro_batch // workers,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 0},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


CONTENDERS = {"heliostat": heliostat, "bare": bare, "trainer": trainer}


def main() -> None:
    """Train until done or ended."""
    name, workers, size, steps, save_every, stamps = sys.argv[1:]
    chosen = workload.SIZES[size]
    task = workload.task(chosen, stamps)
    CONTENDERS[name](Wish(task, chosen, int(workers), int(steps), int(save_every)))


if __name__ == "__main__":
    main()
