"""The settings of the simulation."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import pytest

from heliostat.errors import ConfigError
from jobs.support_templates.data.sim_config import POOLS, SimConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("personal_share", 1.5),
        ("typo_share", -0.1),
        ("lower_case_share", 2.0),
        ("labelled_openings_share", 0.0),
        ("validation_openings_share", 0.0),
        ("test_openings_share", 0.9),
        ("zipf_exponent", -1.0),
        ("test_cases", -1),
        ("advocates", 0),
        ("span_days", 0),
        ("ends_at", "yesterday"),
        ("ends_at", "2026-06-30T00:00:00"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        SimConfig(**{field: value})  # type: ignore[arg-type]


def test_the_period_ends_where_it_says_in_any_zone() -> None:
    config = SimConfig(ends_at="2026-07-01T02:00:00+02:00", span_days=30)
    assert config.end == datetime(2026, 7, 1, tzinfo=UTC)
    assert config.begin == datetime(2026, 6, 1, tzinfo=UTC)


def test_each_pool_has_its_number_of_cases() -> None:
    config = SimConfig(unlabelled_cases=3, labelled_cases=2, validation_cases=4, test_cases=1)
    assert [config.cases(pool) for pool in POOLS] == [3, 2, 4, 1]


def test_the_settings_load_nothing_heavy() -> None:
    heavy = ["numpy", "pyarrow", "faker", "torch", "ray", "pandas", "sklearn", "yaml"]
    code = (
        "import sys; import jobs.support_templates.data.sim_config; "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment()
    )
    assert done.stdout.strip() == "[]"


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(path for path in sys.path if path)}
