"""The tree of errors that Heliostat raises on purpose, and the exit codes they map to.

A `UserError` is something the person at the keyboard can mend: the message says what was wrong,
where, what was expected and the nearest right choice. It ends in exit code 2, never in a traceback.
A `Fault` is anything that broke while running: exit code 1, with a traceback in the log and a run
that can go on. `Interrupted` is a clean stop with a checkpoint: exit code 130.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAULT = 1
EXIT_USER = 2
EXIT_INTERRUPTED = 130


class HeliostatError(Exception):
    """Anything that Heliostat raises on purpose."""

    exit_code = EXIT_FAULT


class UserError(HeliostatError):
    """A mistake that the user can mend; the message is one clear sentence."""

    exit_code = EXIT_USER


class ConfigError(UserError):
    """A config key, value or combination that cannot be right."""


class DataError(UserError):
    """Input data that break their documented schema."""


class InfeasibleError(UserError):
    """A request for resources that the cluster can never satisfy."""


class BundleError(UserError):
    """A bundle that is incomplete, changed or of the wrong kind."""


class Fault(HeliostatError):
    """Something broke while running; what was checkpointed is safe."""


class CheckpointError(Fault):
    """A checkpoint that cannot be written, verified or loaded."""


class StorageError(Fault):
    """Storage that still failed after every retry."""


class TrainingFailed(Fault):
    """A training run that ended in a failure; carries the one-screen explanation."""


class Interrupted(HeliostatError):
    """A clean stop on request (Ctrl-C, SIGTERM); the run can go on from its checkpoint."""

    exit_code = EXIT_INTERRUPTED
