"""Resolve all dependencies as a whole and write the lock files: `make lock`.

An argument is one more package index, with the build of torch that the lock is for.

The development set is resolved first and constrains the runtime set, so that both agree on every
version they share.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = "# Exact versions, resolved as a whole by `make lock`. Installed with pip --no-deps.\n"
BUILD = ["setuptools", "wheel"]


def resolve(requirements: list[str], constraints: dict[str, str]) -> dict[str, str]:
    """Name and exact version of everything that pip would install."""
    with tempfile.TemporaryDirectory() as scratch:
        report, limits = Path(scratch) / "report.json", Path(scratch) / "constraints.txt"
        limits.write_text("".join(f"{name}=={version}\n" for name, version in constraints.items()))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--no-build-isolation", "--report", str(report)]
        command += [word for index in sys.argv[1:] for word in ("--extra-index-url", index)]
        subprocess.run([*command, "--constraint", str(limits), *requirements], check=True)
        entries = json.loads(report.read_text())["install"]
    found = {}
    for entry in entries:
        name = entry["metadata"]["name"].lower().replace("_", "-")
        # A local label such as +cpu names a build, not a release.
        found[name] = entry["metadata"]["version"].split("+")[0]
    return found


def main() -> None:
    """Write requirements.lock and requirements-dev.lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime = [*project["project"]["dependencies"], *BUILD]
    development = project["dependency-groups"]["dev"]
    everything = resolve([*runtime, *development], {})
    needed = resolve(runtime, everything)
    extra = {name: version for name, version in everything.items() if name not in needed}
    for file, pins in (("requirements.lock", needed), ("requirements-dev.lock", extra)):
        lines = "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))
        (ROOT / file).write_text(HEAD + lines)


if __name__ == "__main__":
    main()
