"""Notes when things happen in every Python process that starts with this folder on PYTHONPATH.

Python imports `sitecustomize` by itself. Each process appends lines `TIME PID EVENT` to the file
named by BENCHMARK_EVENTS: its start, the end of the import of some large libraries, and its first
optimiser step.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import time
from pathlib import Path

WATCHED = ("ray", "torch", "deepspeed", "transformers", "datasets", "accelerate", "mlflow")


def note(event):
    """Append an event."""
    line = f"{time.time():.3f} {os.getpid()} {event}\n"
    descriptor = os.open(os.environ["BENCHMARK_EVENTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)


class Watcher(importlib.abc.MetaPathFinder):
    """Finds the watched libraries as usual, and notes when their import has ended."""

    def find_spec(self, name, path, target=None):
        """The usual spec, with a loader that notes the end of the import."""
        if name not in WATCHED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                note(f"importing {name}")
                run(module)
                note(f"imported {name}")
                if name == "torch":
                    watch_first_step()

            spec.loader.exec_module = exec_module
        return spec


def watch_first_step():
    """Note the first optimiser step of this process."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def first(*_):
        handle.remove()
        note("first step")

    handle = register_optimizer_step_post_hook(first)


if "BENCHMARK_EVENTS" in os.environ:
    words = Path("/proc/self/cmdline").read_bytes().replace(b"\0", b" ")
    note(f"start {words.decode(errors='replace')[:160]}")
    sys.meta_path.insert(0, Watcher())
