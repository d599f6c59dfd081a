"""On a cluster of our own, the first workers are processes that had begun before the training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from trainings import EVAL_ROWS, TRAIN_ROWS

from heliostat.storage import Location
from tiny_task import write_rows

SUPPORT = Path(__file__).parents[2] / "support"
SCRIPT = """
import sys
import threading
from dataclasses import replace

import psutil
import ray

from heliostat.cluster.ray_cluster import connect
from heliostat.storage import Location
from heliostat.train import warm_up
from tiny_task import TinyTask
from trainings import CONFIG, Trainings

base = Location.of(sys.argv[1])
task = TinyTask(train=base / "train", evaluation=base / "evaluation")
train = Trainings(base / "runs")
config = replace(CONFIG, steps=4)
connection = connect("local")

def running():
    return {" ".join(one.cmdline()) for one in psutil.Process().children(recursive=True)}


commands = running()
assert any("raylet" in command for command in commands)
for helper in ("autoscaler/_private/monitor.py", "dashboard/dashboard.py", "log_monitor.py"):
    assert not any(helper in command for command in commands), helper

warm_up.warm_up(2, 0.5)
assert warm_up.take_warm_workers(3, {"CPU": 0.5}) == ()
assert warm_up.take_warm_workers(1, {"CPU": 2.0}) == ()
waiting = warm_up._waiting.actors
first, second = (psutil.Process(ray.get(one.get_metadata.remote()).pid) for one in waiting)
seen, over = set(), threading.Event()


def watch():
    while not over.wait(0.1):
        seen.update(running())


watcher = threading.Thread(target=watch)
watcher.start()
train(replace(task, wait_s=0.02), config, run="warm")
over.set()
watcher.join()
first.wait(timeout=30)  # it trained, so it ended with the training
assert second.is_running(), "it was not needed"
assert any("ray::Monitor" in command for command in seen), seen
for helper in ("SynchronizationActor", "TrainController"):
    assert not any(helper in command for command in seen), helper
train(task, config, run="second")
second.wait(timeout=30)
assert warm_up.take_warm_workers(1, {"CPU": 0.5}) == (), "given twice"

warm_up.warm_up(1, 0.5)
ray.kill(warm_up._waiting.actors[0])
assert train(task, config, run="dead").outcome.status == "finished"
connection.close()
print("done")
"""


def test_a_training_takes_the_worker_that_waits_and_does_without_one_that_died(
    tmp_path: Path,
) -> None:
    base = Location.of(tmp_path)
    write_rows(base / "train", TRAIN_ROWS, seed=1)
    write_rows(base / "evaluation", EVAL_ROWS, seed=2)
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=SUPPORT,
    )
    assert ended.stdout.endswith("done\n"), ended.stdout + ended.stderr
