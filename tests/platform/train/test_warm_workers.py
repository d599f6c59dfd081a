"""On a cluster of our own, workers begin before a training and wait for the next one after it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from trainings import EVAL_ROWS, TRAIN_ROWS

from heliostat.storage import Location
from tiny_task import write_rows

SUPPORT = Path(__file__).parents[2] / "support"
BEGINNING = """
import sys
import threading
from dataclasses import replace

import psutil
import ray

from heliostat.cluster.ray_cluster import connect
from heliostat.storage import Location
from heliostat.train import warm_workers
from tiny_task import TinyTask
from trainings import CONFIG, ZERO, Trainings, losses

base = Location.of(sys.argv[1])
task = TinyTask(train=base / "train", evaluation=base / "evaluation", dropout=0.1)
train = Trainings(base / "runs")
connection = connect("local")


def running():
    return {" ".join(one.cmdline()) for one in psutil.Process().children(recursive=True)}


def waiting():
    actors = list(warm_workers._waiting)
    return [psutil.Process(ray.get(one.get_metadata.remote()).pid) for one in actors]


"""
END = """
connection.close()
print("done")
"""
STARTS = """
commands = running()
assert any("raylet" in command for command in commands)
for helper in ("autoscaler/_private/monitor.py", "dashboard/dashboard.py", "log_monitor.py"):
    assert not any(helper in command for command in commands), helper

warm_workers.warm_up(2, 0.5)
before = waiting()
seen, over = set(), threading.Event()


def watch():
    while not over.wait(0.1):
        seen.update(running())


watcher = threading.Thread(target=watch)
watcher.start()
config = replace(CONFIG, steps=2)
train(replace(task, wait_s=0.02), config)
over.set()
watcher.join()
assert any("ray::RayTrainWorker" in command for command in seen), seen
for helper in ("SynchronizationActor", "TrainController", "ray::Monitor"):
    assert not any(helper in command for command in seen), helper
assert set(waiting()) == set(before), "the one that trained and the one that was not needed"

first, other = waiting()
first.kill()
first.wait(timeout=30)
assert train(task, config).outcome.status == "finished", "the one to be taken next had died"
assert waiting()[0] == other

warm_workers.take_workers(0, 2.0)
other.wait(timeout=30)  # of another kind than what is asked for now
"""
SAME = """
def trained(stage, workers):
    result = train(task, replace(CONFIG, steps=6, zero=ZERO[stage]), workers=workers)
    return losses(result), result.metrics


whole = trained(2, 2)
first = waiting()
trained(0, 1)
trained(1, 2)
assert trained(2, 2) == whole
assert set(waiting()) == set(first), "all four were done by the same two processes"

# Those that failed are not kept.
cursed = int(task.train_data().samples([CONFIG.batch])[0]["id"])  # the first of step 2
try:
    train(replace(task, fail_at_id=cursed), replace(CONFIG, steps=6, max_failures=0), workers=2)
except Exception as error:
    print(error)
else:
    raise AssertionError("it did not fail")
assert not psutil.wait_procs(first, timeout=30)[1], "processes of a failed training"
"""


def output(script: str, folder: Path) -> str:
    base = Location.of(folder)
    write_rows(base / "train", TRAIN_ROWS, seed=1)
    write_rows(base / "evaluation", EVAL_ROWS, seed=2)
    ended = subprocess.run(
        [sys.executable, "-c", BEGINNING + script + END, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=SUPPORT,
    )
    return ended.stdout if ended.returncode == 0 else ended.stdout + ended.stderr


def test_a_training_takes_workers_that_wait_does_without_dead_ones_and_starts_few_helpers(
    tmp_path: Path,
) -> None:
    assert output(STARTS, tmp_path).endswith("done\n")


def test_workers_that_have_trained_train_the_next_model_as_new_ones_would(tmp_path: Path) -> None:
    assert output(SAME, tmp_path).endswith("done\n")
