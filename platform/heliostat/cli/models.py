"""`heliostat models`: which bundles there are, which one is the champion, and how they differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from heliostat.cli.arguments import RunsFolder
from heliostat.cli.complete import complete_job
from heliostat.cli.screen import say, show_table
from heliostat.config.output import DEFAULT_OUT, resolve_output
from heliostat.runs.summary import Cell

if TYPE_CHECKING:
    from heliostat.runs.differences import Difference
    from heliostat.runs.mlflow_registry import ModelVersion
    from heliostat.runs.model_facts import ModelFacts
    from heliostat.runs.registry import Place

MOST_METRICS = 3
"""Metrics of a version that fit on a line of the list."""
CHAMPION = "champion"

Reference = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="JOB (its champion), JOB@ALIAS, JOB:NUMBER, or a bundle's folder or URI.",
    ),
]
TrackerUri = Annotated[
    str | None,
    typer.Option(
        "--tracker",
        metavar="URI",
        help="The tracker, if it is neither MLFLOW_TRACKING_URI nor the file beside the runs.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(no_args_is_help=True)


@app.callback()
def group() -> None:
    """List, show, promote and compare models."""


@app.command("list")
def list_command(
    job: Annotated[
        str | None,
        typer.Argument(
            metavar="[JOB]",
            help="Only this model.",
            autocompletion=complete_job,
            show_default=False,
        ),
    ] = None,
    out: RunsFolder = DEFAULT_OUT,
    tracker: TrackerUri = None,
    as_json: AsJson = False,
) -> None:
    """List the versions of the models, the newest first."""
    from heliostat.runs.provenance import provenance_of_tags
    from heliostat.runs.registry import list_versions

    place = _place(out, tracker)
    versions = list_versions(place, job)
    if as_json:
        _print_json([_version_json(version) for version in versions])
        return
    if not versions:
        say(f"There are no models of the runs in {place.out.uri}.")
        return
    rows = []
    for version in versions:
        known = provenance_of_tags(version.tags)
        aliases = ", ".join(version.aliases)
        rows.append(
            (
                version.model,
                version.number,
                aliases or None,
                known.run,
                version.made[:19].replace("T", " "),
                _brief(known.metrics),
            )
        )
    show_table(None, ("model", "version", "aliases", "run", "made (UTC)", "metrics"), rows)


@app.command()
def show(
    reference: Reference,
    out: RunsFolder = DEFAULT_OUT,
    tracker: TrackerUri = None,
    as_json: AsJson = False,
) -> None:
    """Show one model: where it comes from, the metrics of its card, its files.

    Example:

      heliostat models show support_templates@champion
    """
    from heliostat.runs.model_differences import origin_of
    from heliostat.runs.model_facts import model_facts

    facts = model_facts(_place(out, tracker), reference)
    if as_json:
        _print_json(_facts_json(facts))
        return
    for version in facts.versions:
        known_as = f", alias {', '.join(version.aliases)}" if version.aliases else ""
        say(f"model {version}{known_as}, registered {version.made}")
    if not facts.versions:
        say(f"not registered (heliostat models register {facts.bundle})")
    say(f"bundle {facts.bundle}")
    if facts.trouble is not None:
        say(f"cannot be used: {facts.trouble}")
    show_table("provenance", ("", "value"), list(origin_of(facts, facts.manifest).items()))
    if facts.provenance.metrics:
        show_table("metrics", ("metric", "value"), list(facts.provenance.metrics.items()))
    if facts.manifest is not None:
        files = facts.manifest.files.items()
        rows = [(name, entry.bytes, entry.sha256[:12]) for name, entry in files]
        show_table("files", ("file", "bytes", "sha256"), rows)


@app.command()
def promote(
    reference: Reference,
    alias: Annotated[
        str, typer.Option("--alias", metavar="ALIAS", help="The alias that it gets.")
    ] = CHAMPION,
    out: RunsFolder = DEFAULT_OUT,
    tracker: TrackerUri = None,
) -> None:
    """Verify a version and make it the champion of its model, or give it another alias.

    Example:

      heliostat models promote support_templates:3
    """
    from heliostat.runs import registry

    done = registry.promote(_place(out, tracker), reference, alias)
    version = done.version
    name = f"{version.model}@{done.alias}"
    option = "" if alias == CHAMPION else f" --alias {alias}"
    where = _options(out, tracker)
    if done.before == version.number:
        say(f"{name} is version {version.number} already, and its bundle is whole")
    elif done.before is None:
        say(f"{name} is now version {version.number}; there was none before")
        say(f"to take it back: heliostat models demote {name}{where}")
    else:
        say(f"{name} is now version {version.number}; it was version {done.before}")
        say(f"to go back: heliostat models promote {version.model}:{done.before}{option}{where}")
    if done.after != version.number:
        now = "nothing" if done.after is None else f"version {done.after}"
        say(f"somebody else moved it at the same moment: {name} is {now} by now")


@app.command()
def demote(
    reference: Annotated[
        str, typer.Argument(metavar="JOB@ALIAS", help="The alias that is taken away.")
    ],
    out: RunsFolder = DEFAULT_OUT,
    tracker: TrackerUri = None,
) -> None:
    """Take an alias away; the version stays.

    Example:

      heliostat models demote support_templates@candidate
    """
    from heliostat.runs import registry

    version = registry.demote(_place(out, tracker), reference)
    alias = reference.partition("@")[2]
    option = "" if alias == CHAMPION else f" --alias {alias}"
    say(f"{reference} was version {version.number} and is nothing now")
    say(f"to go back: heliostat models promote {version}{option}{_options(out, tracker)}")


@app.command()
def register(
    bundle: Annotated[str, typer.Argument(metavar="PATH", help="Folder or URI of a bundle.")],
    job: Annotated[
        str | None,
        typer.Option(
            "--job",
            metavar="NAME",
            help="The model's name, where the bundle does not say of which job it is.",
            autocompletion=complete_job,
        ),
    ] = None,
    out: RunsFolder = DEFAULT_OUT,
    tracker: TrackerUri = None,
) -> None:
    """Make a bundle a version of its model; a run with a tracker has done so by itself.

    Example:

      heliostat models register runs/NAME/bundle
    """
    from heliostat.runs.registry import register_bundle

    version, is_new = register_bundle(_place(out, tracker), bundle, job)
    say(f"{version.place} {'is now' if is_new else 'was registered already as'} {version}")


@app.command()
def diff(
    left: Annotated[str, typer.Argument(metavar="REF", help="One model, as for `show`.")],
    right: Annotated[str, typer.Argument(metavar="REF", help="The other one.")],
    out: RunsFolder = DEFAULT_OUT,
    tracker: TrackerUri = None,
    as_json: AsJson = False,
) -> None:
    """Compare two models: origin, config keys, metrics, labels and other parts, versions.

    Example:

      heliostat models diff support_templates@champion support_templates:4
    """
    from heliostat.runs.model_differences import model_differences
    from heliostat.runs.model_facts import model_facts

    place = _place(out, tracker)
    sides = (model_facts(place, left), model_facts(place, right))
    found = model_differences(*sides)
    tables: dict[str, Sequence[Difference[object]] | None] = {
        "origin": found.origin,
        "config": found.config,
        "metrics": found.metrics,
        "parts": found.parts,
        "versions": found.versions,
    }
    if as_json:
        names = [side.name for side in sides]
        _print_json({"models": names, **{name: _rows_json(rows) for name, rows in tables.items()}})
        return
    for title, rows in tables.items():
        if rows is None:
            say(f"{title}: not known of both (the run folder of one is gone)")
        elif not rows:
            say(f"{title}: no difference")
        else:
            columns = ("", sides[0].name, sides[1].name)
            show_table(title, columns, [(row.key, *map(_cell, row.values)) for row in rows])


def _place(out: str, tracker: str | None) -> Place:
    from heliostat.runs.registry import Place

    return Place(resolve_output(out).place, tracker)


def _options(out: str, tracker: str | None) -> str:
    """The options that lead the next command to the same registry, without a password."""
    from heliostat.runs.tracker_address import without_credentials

    place = "" if out == DEFAULT_OUT else f" --out {out}"
    return place + ("" if tracker is None else f" --tracker {without_credentials(tracker)}")


def _version_json(version: ModelVersion) -> dict[str, object]:
    from heliostat.runs.provenance import provenance_of_tags

    known = provenance_of_tags(version.tags)
    return {
        "model": version.model,
        "version": version.number,
        "aliases": list(version.aliases),
        "made": version.made,
        "bundle": version.place.uri,
        "digest": version.digest,
        "run": known.run,
        "config": known.config,
        "data": known.data,
        "commit": known.commit,
        "claim": known.claim and {"holds": known.claim.holds, "date": known.claim.date},
        "metrics": dict(known.metrics),
    }


def _facts_json(facts: ModelFacts) -> dict[str, object]:
    known, manifest = facts.provenance, facts.manifest
    return {
        "bundle": facts.bundle.uri,
        "trouble": facts.trouble,
        "versions": [_version_json(version) for version in facts.versions],
        "kind": manifest and manifest.kind,
        "digest": manifest and manifest.digest,
        "run": known.run,
        "config": known.config,
        "data": known.data,
        "commit": known.commit,
        "claim": known.claim
        and {"holds": known.claim.holds, "date": known.claim.date, "run": known.claim.run},
        "metrics": dict(known.metrics),
        "library_versions": dict(known.versions),
        "files": {name: entry.bytes for name, entry in manifest.files.items()} if manifest else {},
    }


def _rows_json(rows: Sequence[Difference[object]] | None) -> dict[str, object] | None:
    from heliostat.runs.differences import Absent

    if rows is None:
        return None
    return {
        row.key: [None if isinstance(value, Absent) else value for value in row.values]
        for row in rows
    }


def _print_json(content: object) -> None:
    print(json.dumps(content, indent=2))


def _brief(metrics: Mapping[str, float]) -> str:
    """The first metrics on one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:MOST_METRICS])


def _cell(value: object) -> Cell:
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    return str(value)
