"""Write the figures of `benchmarks/results/*.json` into a Markdown file, between two markers.

python -m benchmarks.table              renders the table into benchmarks/README.md
python -m benchmarks.table --check      fails where the file does not say what the results say
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.result import RESULTS

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
HEAD = """\
| what | ours | peer | ratio | required | met | samples |
| --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    """Render, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if it would")
    parser.add_argument("--file", type=Path, default=README)
    given = parser.parse_args()
    text = given.file.read_text(encoding="utf-8")
    rendered = rendered_into(text, table(RESULTS))
    if not given.check:
        given.file.write_text(rendered, encoding="utf-8")
    elif rendered != text:
        sys.exit(f"{given.file} does not say what the results say: run python -m benchmarks.table")


def rendered_into(text: str, table: str) -> str:
    """The text with the table between its markers."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table}{END}{after}"


def table(results: Path) -> str:
    """All results as a Markdown table, and where and when each was measured."""
    files = sorted(results.glob("*.json"))
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    rows = [row(measure) for result in found for measure in result["measures"]]
    notes = [note(result) for result in found]
    return HEAD + "".join(rows) + "\n" + "".join(notes)


def row(measure: dict[str, Any]) -> str:
    """One measure."""
    unit = measure["unit"]
    ours = f"{statistics.median(measure['ours']):.3g} {unit}"
    peer = f"{statistics.median(measure['peer']):.3g} {unit}" if measure["peer"] else ""
    ratio = "" if measure["ratio"] is None else f"{measure['ratio']:.3f}"
    met = {True: "yes", False: "no", None: ""}[measure["is_met"]]
    cells = [
        measure["name"], ours, peer, ratio, measure["required"], met, str(len(measure["ours"]))
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |\n"


def note(result: dict[str, Any]) -> str:
    """Machine, versions and date of one result."""
    machine, versions = result["machine"], result["versions"]
    libraries = ", ".join(f"{name} {number}" for name, number in versions.items())
    load = machine["load_1_minute_at_the_end"]
    return (
        f"- `{result['name']}`: `{result['command']}`, {result['date'][:10]}, "
        f"{machine['cores']} cores of {machine['processor']}, load {load}; {libraries}\n"
    )


if __name__ == "__main__":
    main()
