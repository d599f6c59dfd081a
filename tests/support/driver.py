"""A driver process with a Ray of its own, to be killed or signalled: `driver.py OUT ROWS WAIT_S`.

It trains the tiny task as run `r`, going on if that was begun, and ends like the command line: the
message of an error on standard error, and its exit code.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from trainings import CONFIG, ZERO, Trainings

from heliostat.cluster.ray_cluster import connect
from heliostat.errors import HeliostatError
from heliostat.storage import Location
from tiny_task import TinyTask

ZERO_1 = replace(CONFIG, zero=ZERO[1])


def task_of(rows: Location, wait_s: float) -> TinyTask:
    return TinyTask(train=rows / "train", evaluation=rows / "evaluation", wait_s=wait_s)


def main(out: Location, rows: Location, wait_s: float) -> int:
    connection = connect("local")
    try:
        result = Trainings(out)(task_of(rows, wait_s), ZERO_1, workers=2, run="r")
    except HeliostatError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    finally:
        connection.close()
    print(f"finished at step {result.outcome.step}")
    return 0


if __name__ == "__main__":
    places = [Location.of(Path(argument)) for argument in sys.argv[1:3]]
    sys.exit(main(*places, float(sys.argv[3])))
