"""Heliostat turns a Ray cluster onto one training run.

This is the flat, typed surface that jobs build on. Names are loaded when they are first used, so
`import heliostat` costs milliseconds and pulls in neither torch nor Ray; a type checker sees plain
imports. To export a name, add it to `_HOME` and to the imports below it; a test holds them equal.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_HOME = {
    "Batch": "heliostat.train.task",
    "Bundle": "heliostat.runs.bundle",
    "BundleError": "heliostat.errors",
    "CheckpointConfig": "heliostat.train.config",
    "CheckpointError": "heliostat.errors",
    "ConfigError": "heliostat.errors",
    "DataError": "heliostat.errors",
    "EvaluationConfig": "heliostat.train.config",
    "Fault": "heliostat.errors",
    "FitConfig": "heliostat.train.config",
    "FitResult": "heliostat.train.fit",
    "HeliostatError": "heliostat.errors",
    "InfeasibleError": "heliostat.errors",
    "IntRange": "heliostat.config.int_range",
    "Interrupted": "heliostat.errors",
    "Location": "heliostat.storage",
    "LossTerm": "heliostat.train.task",
    "Observed": "heliostat.train.task",
    "OptimizerConfig": "heliostat.train.config",
    "PackedStream": "heliostat.data.stream",
    "Report": "heliostat.runs.report",
    "ResourcesConfig": "heliostat.config.resources",
    "RowStream": "heliostat.data.stream",
    "Run": "heliostat.runs.run",
    "RunSummary": "heliostat.runs.summary",
    "Sample": "heliostat.data.stream",
    "ScheduleConfig": "heliostat.train.config",
    "Steered": "heliostat.train.task",
    "Steering": "heliostat.train.task",
    "StorageError": "heliostat.errors",
    "Stream": "heliostat.data.stream",
    "Table": "heliostat.data.table",
    "TableWriter": "heliostat.data.table",
    "Tally": "heliostat.train.task",
    "Task": "heliostat.train.task",
    "TrackerConfig": "heliostat.config.resources",
    "TrainingFailed": "heliostat.errors",
    "UserError": "heliostat.errors",
    "ZeroConfig": "heliostat.train.config",
    "fit": "heliostat.train.fit",
    "in_parallel": "heliostat.train.parallel",
    "load_bundle": "heliostat.runs.bundle",
    "load_config": "heliostat.config.load",
    "prepare": "heliostat.data.prepare",
    "save_bundle": "heliostat.runs.bundle",
}

if TYPE_CHECKING:
    from heliostat.config.int_range import IntRange
    from heliostat.config.load import load_config
    from heliostat.config.resources import ResourcesConfig, TrackerConfig
    from heliostat.data.prepare import prepare
    from heliostat.data.stream import PackedStream, RowStream, Sample, Stream
    from heliostat.data.table import Table, TableWriter
    from heliostat.errors import (
        BundleError,
        CheckpointError,
        ConfigError,
        DataError,
        Fault,
        HeliostatError,
        InfeasibleError,
        Interrupted,
        StorageError,
        TrainingFailed,
        UserError,
    )
    from heliostat.runs.bundle import Bundle, load_bundle, save_bundle
    from heliostat.runs.report import Report
    from heliostat.runs.run import Run
    from heliostat.runs.summary import RunSummary
    from heliostat.storage import Location
    from heliostat.train.config import (
        CheckpointConfig,
        EvaluationConfig,
        FitConfig,
        OptimizerConfig,
        ScheduleConfig,
        ZeroConfig,
    )
    from heliostat.train.fit import FitResult, fit
    from heliostat.train.parallel import in_parallel
    from heliostat.train.task import (
        Batch,
        LossTerm,
        Observed,
        Steered,
        Steering,
        Tally,
        Task,
    )

    __version__: str

__all__ = [
    "Batch",
    "Bundle",
    "BundleError",
    "CheckpointConfig",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EvaluationConfig",
    "Fault",
    "FitConfig",
    "FitResult",
    "HeliostatError",
    "InfeasibleError",
    "IntRange",
    "Interrupted",
    "Location",
    "LossTerm",
    "Observed",
    "OptimizerConfig",
    "PackedStream",
    "Report",
    "ResourcesConfig",
    "RowStream",
    "Run",
    "RunSummary",
    "Sample",
    "ScheduleConfig",
    "Steered",
    "Steering",
    "StorageError",
    "Stream",
    "Table",
    "TableWriter",
    "Tally",
    "Task",
    "TrackerConfig",
    "TrainingFailed",
    "UserError",
    "ZeroConfig",
    "__version__",
    "fit",
    "in_parallel",
    "load_bundle",
    "load_config",
    "prepare",
    "save_bundle",
]


def __getattr__(name: str) -> object:
    """Load an exported name on first use (PEP 562)."""
    value: object
    if name == "__version__":
        value = _version()
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'heliostat' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The installed distribution's version; a bare checkout on the path has none of its own."""
    from importlib import metadata

    try:
        return metadata.version("heliostat")
    except metadata.PackageNotFoundError:
        return "0+checkout"
