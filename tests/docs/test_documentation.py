"""Every command in the documentation works, and every quoted figure is the measured one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
SLOW = {
    "make run",  # tests/jobs/support_templates/test_job.py trains the same, smaller
    "make test",  # this
    "make lint",
    "heliostat train support_templates size=quick",
    "heliostat train mla_moe size=toy",  # tests/jobs/mla_moe/test_mla_moe_job.py, smaller
}
"""Commands that take minutes; other tests run what they run."""


def commands() -> list[str]:
    """Every line of every `bash` block, comments cut."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            found += [line.split("#")[0].strip() for line in block.splitlines()]
    return sorted({line for line in found if line})


def test_the_documentation_shows_commands() -> None:
    assert "make run" in commands()


@pytest.mark.parametrize("command", [line for line in commands() if line not in SLOW])
def test_a_documented_command_succeeds(command: str, tmp_path: Path) -> None:
    assert command.startswith("heliostat "), f"no test knows how to run {command!r}"
    executable = Path(sys.executable).parent / "heliostat"
    done = subprocess.run(
        [str(executable), *command.split()[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []


def test_quoted_figures_are_those_that_were_measured() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "render_docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_makefile_has_what_the_documentation_names() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert set(named) <= set(targets)


def test_the_page_of_commands_names_each_exit_code() -> None:
    readme = (ROOT / "README.md").read_text()
    assert all(code in readme for code in ("0 done", "1 something broke", "2 a mistake", "130"))
