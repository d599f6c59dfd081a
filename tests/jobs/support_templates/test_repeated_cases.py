"""A case id that stands twice is found wherever its rows lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliostat.errors import DataError
from heliostat.storage import Location
from jobs.support_templates.data.schema import refuse_repeated_cases, write_cases
from jobs.support_templates.data.sim_config import SimConfig
from jobs.support_templates.data.support_sim import simulate

CASES = list(simulate(SimConfig(test_cases=6), "test"))


def test_unique_ids_in_several_files_pass(tmp_path: Path) -> None:
    write_cases(Location.of(tmp_path / "a.parquet"), CASES[:3])
    write_cases(Location.of(tmp_path / "b.parquet"), CASES[3:])
    refuse_repeated_cases(Location.of(tmp_path))


def test_an_id_repeated_in_another_file_is_refused_with_both_rows(tmp_path: Path) -> None:
    write_cases(Location.of(tmp_path / "a.parquet"), CASES[:3])
    write_cases(Location.of(tmp_path / "b.parquet"), [CASES[4], CASES[1]])
    with pytest.raises(DataError, match=r"b\.parquet, row 2: .* row 2 in .*a\.parquet"):
        refuse_repeated_cases(Location.of(tmp_path))
