"""What `import heliostat` offers to jobs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import heliostat
from heliostat.config.contract import COMMON_KEYS, JobConfig


def type_checking_imports() -> dict[str, str]:
    """Name to module, as a type checker sees them."""
    found = {}
    for node in ast.walk(ast.parse(Path(heliostat.__file__).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("heliostat."):
            found.update({alias.name: node.module or "" for alias in node.names})
    return found


def test_type_checker_and_interpreter_see_the_same_names() -> None:
    assert type_checking_imports() == heliostat._HOME
    assert sorted(heliostat.__all__) == sorted([*heliostat._HOME, "__version__"])


@pytest.mark.parametrize("name", heliostat.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(heliostat, name) is not None


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        getattr(heliostat, "fitt")  # noqa: B009


def test_the_common_keys_are_those_of_the_contract() -> None:
    assert {name for name in vars(JobConfig) if not name.startswith("_")} == set(COMMON_KEYS)
