"""The command `heliostat`: its subcommands, its exit codes, and the one place that catches errors.

Exit codes: 0 done; 1 something broke while running, what was checkpointed is safe; 2 a mistake the
user can mend, told in one sentence; 130 interrupted, and the run can go on.
"""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from heliostat.cli import (
    claim,
    config,
    doctor,
    estimate,
    export,
    jobs,
    models,
    runs,
    serve,
    sweep,
    train,
    verify,
)
from heliostat.config.settings import settings
from heliostat.errors import (
    EXIT_DONE,
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_USER,
    HeliostatError,
)

DEBUG = "--debug"

EPILOG = (
    "Exit codes: 0 done; 1 something broke, what was checkpointed is safe; "
    "2 a mistake you can mend; 130 interrupted, the run can go on."
)

app = typer.Typer(
    name="heliostat",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog=EPILOG,
)
app.command(epilog=EPILOG)(train.train)
app.command(epilog=EPILOG)(claim.claim)
app.command(epilog=EPILOG)(sweep.sweep)
app.command()(jobs.jobs)
app.add_typer(config.app, name="config")
app.add_typer(runs.app, name="runs")
app.add_typer(serve.app, name="serve")
app.add_typer(models.app, name="models")
app.command()(export.export)
app.command()(verify.verify)
app.command()(estimate.estimate)
app.command()(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        import heliostat

        typer.echo(heliostat.__version__)
        raise typer.Exit


@app.callback()
def heliostat_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option(DEBUG, help="Show tracebacks; may stand anywhere on the line.")
    ] = False,
) -> None:
    """Train the jobs in jobs/ on a laptop, a Ray cluster or Kubernetes.

    First steps: `heliostat doctor`, `heliostat jobs`, `heliostat config show JOB`,
    `heliostat train JOB`.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (that of the process by default) and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    is_debug = DEBUG in words
    if threading.current_thread() is threading.main_thread():
        # A preempted machine sends it: outside a training, which saves a checkpoint first, it
        # stops like Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # Outside standalone mode typer returns the code of an Exit, and what a command returned.
        code = app(
            [word for word in words if word != DEBUG], prog_name="heliostat", standalone_mode=False
        )
    except KeyboardInterrupt:
        return _interrupted()
    except TyperException as error:
        # Without a subcommand the help was printed and there is nothing to add.
        if message := error.format_message():
            _tell(f"{message} (see heliostat --help)")
        return EXIT_USER
    except HeliostatError as error:
        if is_debug:
            traceback.print_exc()
        message = str(error)
        if error.exit_code == EXIT_FAULT and not is_debug:
            message += f"\nThe traceback is in {_log_traceback()}."
        _tell(message)
        return error.exit_code
    except Exception as error:
        if is_debug:
            traceback.print_exc()
        else:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            _tell(
                f"unexpected {reason}\nThe traceback is in {_log_traceback()}; "
                f"{DEBUG} shows it here."
            )
        return EXIT_FAULT
    return _interrupted() if code == EXIT_INTERRUPTED else int(code or EXIT_DONE)


def _interrupted() -> int:
    _tell("interrupted")
    return EXIT_INTERRUPTED


def _tell(message: str) -> None:
    """The one message of a command that did not end well."""
    print(f"heliostat: {message}", file=sys.stderr)


def _log_traceback() -> Path:
    """Write the traceback of the error at hand to a file of its own."""
    time = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    path = settings().home / "logs" / f"error-{time}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{' '.join(sys.argv)}\n\n{traceback.format_exc()}", encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
