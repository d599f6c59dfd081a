"""Quote measured figures in the documentation: `make docs`.

Everything between `<!-- claim:begin -->` and `<!-- claim:end -->` of `docs/JOB.md` is written from
`docs/claims/JOB.json`, which `heliostat claim JOB` wrote; the block `claim-DATA` from the
`claim.json` of a run on other data, kept as `docs/claims/JOB-DATA.json`; and the block `output` of
the README from `docs/claims/make_run.txt`. A test holds that nothing was edited by hand.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


COLUMNS = {
    "top1_percent": "top-1 %",
    "top3_percent": "top-3 %",
    "top5_percent": "top-5 %",
    "loss_nats": "loss",
    "accuracy": "accuracy",
    "maxvio_global": "maximal violation",
    "cache_bytes_per_token": "cache, bytes a token",
}
"""What a table of arms shows, of what was measured."""
Figures = dict[str, dict[str, float]]


def arms_table(summary: dict[str, Figures]) -> tuple[dict[str, str], dict[str, Figures]]:
    """The columns of a claim's table and its rows: the arms with a loss of every seed."""
    read = {arm: row for arm, row in summary.items() if "loss_nats" in row}
    seeds = max(row["loss_nats"]["seeds"] for row in read.values())
    rows = {arm: row for arm, row in read.items() if row["loss_nats"]["seeds"] == seeds}
    shown = {name for row in rows.values() for name in row}
    return {name: title for name, title in COLUMNS.items() if name in shown}, rows


def with_spread(mean: float, std: float) -> str:
    """A mean with as many digits as its spread leaves any sense."""
    if not std:
        return f"{mean:.4g}"
    decimals = min(4, max(0, 1 - math.floor(math.log10(std))))
    return f"{mean:.{decimals}f} ± {std:.2g}"


def claim_block(claim: dict[str, object]) -> str:
    """The figures of a claim as Markdown."""
    criteria: list[dict[str, object]] = claim["criteria"]  # type: ignore[assignment]
    summary: dict[str, Figures] = claim["summary"]  # type: ignore[assignment]
    inputs: list[dict[str, str]] = claim["inputs"]  # type: ignore[assignment]
    seeds = ", ".join(str(seed) for seed in claim["seeds"])  # type: ignore[attr-defined]
    verdict = "holds" if claim["holds"] else "does **not** hold in full"
    parts: list[dict[str, float]] = claim.get("parts", [])  # type: ignore[assignment]
    seconds = float(claim["seconds"]) + sum(part["seconds"] for part in parts)  # type: ignore[arg-type]
    runs = f" in {len(parts) + 1} runs" if parts else ""
    lines = [
        f"The claim {verdict}, measured with `{claim['command']}` on {str(claim['date'])[:10]}, "
        f"seeds {seeds} ({seconds / 60:.0f} minutes{runs}).",
        "",
        "| criterion | measured | must be | holds |",
        "| --- | ---: | --- | --- |",
    ]
    lines += [
        f"| {c['what']} | {float(c['measured']):.3g} | {c['relation']} {c['threshold']:g} | "  # type: ignore[arg-type]
        f"{'yes' if c['holds'] else '**no**'} |"
        for c in criteria
    ]
    columns, rows = arms_table(summary)
    lines += [
        "",
        f"| arm | {' | '.join(columns.values())} |",
        f"| --- |{' ---: |' * len(columns)}",
    ]
    for arm, row in rows.items():
        cells = [
            with_spread(row[name]["mean"], row[name]["std"]) if name in row else ""
            for name in columns
        ]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    fewer = {arm: row for arm, row in summary.items() if "loss_nats" in row and arm not in rows}
    if fewer:
        lines += [
            "",
            f"| measured on fewer seeds | seeds | {' | '.join(columns.values())} |",
            f"| --- | ---: |{' ---: |' * len(columns)}",
        ]
    for arm, row in fewer.items():
        cells = [f"{row[name]['mean']:.4g}" if name in row else "" for name in columns]
        lines.append(f"| {arm} | {row['loss_nats']['seeds']} | " + " | ".join(cells) + " |")
    real = [item["name"] for item in inputs if item["origin"] == "real"]
    made = [item["name"] for item in inputs if item["origin"] == "generated"]
    lines += [
        "",
        "Mean and standard deviation over the seeds. Real inputs: "
        f"{', '.join(real) or 'none'}; generated: {', '.join(made) or 'none'}.",
    ]
    return "\n".join(lines)


def replaced(text: str, name: str, block: str) -> str:
    """The text with the content between the markers of a block replaced."""
    pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{block}\n{match[2]}", text)


def rendered() -> dict[Path, str]:
    """What every page with quoted figures should say."""
    pages: dict[Path, str] = {}
    for file in sorted((ROOT / "docs" / "claims").glob("*.json")):
        job, _, data = file.stem.partition("-")
        page = ROOT / "docs" / f"{job}.md"
        text = pages.get(page, page.read_text())
        block = claim_block(json.loads(file.read_text()))
        pages[page] = replaced(text, f"claim-{data}" if data else "claim", block)
    output = ROOT / "docs" / "claims" / "make_run.txt"
    if output.exists():
        readme = ROOT / "README.md"
        block = f"```\n{output.read_text().rstrip()}\n```"
        pages[readme] = replaced(readme.read_text(), "output", block)
    return pages


def main() -> None:
    """Write the pages, or with --check fail when one differs."""
    wrong = [page for page, text in rendered().items() if page.read_text() != text]
    if "--check" in sys.argv:
        sys.exit(f"run `make docs`: {', '.join(map(str, wrong))}" if wrong else 0)
    for page in wrong:
        page.write_text(rendered()[page])


if __name__ == "__main__":
    main()
