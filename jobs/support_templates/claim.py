"""placeholder"""
from __future__ import annotations
from heliostat.runs.run import Run
from heliostat.runs.summary import RunSummary
from jobs.support_templates.config import Config
def claim(config: Config, run: Run) -> RunSummary:
    raise NotImplementedError
