"""`heliostat serve`: an endpoint from a bundle, on this machine or on a cluster."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from typer.core import TyperGroup

from heliostat.cli.arguments import JobName
from heliostat.cli.complete import complete_override
from heliostat.cli.screen import note, say, show_table
from heliostat.errors import ConfigError, UserError

if TYPE_CHECKING:
    from heliostat.serve.lineup import Lineup

RUN = "run"


class JobFirst(TyperGroup):
    """A group whose first word may be a job: `heliostat serve JOB` is `heliostat serve run JOB`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the words mean."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = [RUN, *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(no_args_is_help=True, cls=JobFirst)

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[BUNDLE] [KEY=VALUE]...",
        help="A bundle (folder, URI, JOB:NUMBER, or an alias such as champion), by default the "
        "champion, else the newest; and config keys: serve.http.port=8080.",
        autocompletion=complete_override,
    ),
]
Bundles = Annotated[
    list[str],
    typer.Option(
        "--bundle",
        metavar="BUNDLE[=PERCENT]",
        help="Another bundle and its share of the requests: a canary.",
    ),
]
Shadow = Annotated[
    str | None,
    typer.Option("--shadow", metavar="BUNDLE", help="Gets copies of requests; never answers."),
]
KeyFile = Annotated[Path, typer.Option("--file", metavar="FILE", help="The key file.")]
Dashboard = Annotated[
    str, typer.Option("--address", metavar="URL", help="The cluster's dashboard.")
]
DEFAULT_DASHBOARD = "http://127.0.0.1:8265"
DEFAULT_KEYS = Path("keys.json")


@app.callback()
def group() -> None:
    """Serve a bundle over HTTP: heliostat serve JOB, or heliostat serve JOB BUNDLE.

    Keys: heliostat serve key NAME. For a cluster: heliostat serve build, then heliostat serve
    deploy; deploying again with another bundle swaps it while requests go on.
    """


@app.command(RUN)
def run(
    job: JobName,
    words: Words = None,
    bundle: Bundles = [],  # noqa: B006 (typer reads the default and never changes it)
    shadow: Shadow = None,
) -> None:
    """Serve on this machine until Ctrl-C."""
    from heliostat.serve.local import first_key, serving

    config, named = split_words(words)
    lineup = lineup_from(job, config, named, bundle, shadow)
    # Before anything can fail: a key that nobody saw would lock everybody out.
    if (made := first_key(job, config)) is not None:
        say(f"key    {made[0]}")
        note(f"This is the only time that the key is shown; {made[1]} has its hash.")
    with serving(job, config, lineup) as running:
        for line in running.versions:
            say(line)
        say(f"page   {running.address.url}/")
        say(f"API    {running.address.url}/docs")
        address = (
            "" if running.dashboard == DEFAULT_DASHBOARD else f" --address {running.dashboard}"
        )
        say(f"change heliostat serve build, then heliostat serve deploy serve.yaml{address}")
        say("Ctrl-C stops it.")
        threading.Event().wait()


@app.command()
def build(
    job: JobName,
    words: Words = None,
    bundle: Bundles = [],  # noqa: B006
    shadow: Shadow = None,
    out: Annotated[Path, typer.Option("--to", metavar="FILE", help="Where to write it.")] = Path(
        "serve.yaml"
    ),
) -> None:
    """Write the YAML of an endpoint, for serve deploy or a RayService."""
    from heliostat.serve.deployment import check, describe

    config, named = split_words(words)
    description = describe(job, config, lineup_from(job, config, named, bundle, shadow))
    check(description, str(out))
    out.write_text(yaml.safe_dump(description, sort_keys=False), encoding="utf-8")
    say(f"wrote {out}; next: heliostat serve deploy {out}")


@app.command()
def deploy(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What serve build wrote.")],
    address: Dashboard = DEFAULT_DASHBOARD,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            metavar="URL",
            help="Where the endpoint answers, for a cluster that is not on this machine.",
        ),
    ] = None,
) -> None:
    """Start an endpoint on a running cluster, or change it while it answers.

    Other bundles or shares take effect in place: no request is dropped, and when a bundle cannot
    be loaded what ran before goes on answering, on every replica.
    """
    from heliostat.serve.deployment import address_of, check, read
    from heliostat.serve.health import Address
    from heliostat.serve.rollout import deploy, is_here

    description = read(file, is_here=False)
    place = None if endpoint is None else Address(endpoint)
    if is_here(address):
        check(description, str(file))
        place = place or address_of(description)
    versions = deploy(description, address, place)
    if place is None:
        note(
            f"the cluster at {address} has it, but whether its versions could be loaded is not "
            "seen from here; with --endpoint URL this command waits for them, and goes back if not"
        )
        return
    for version in versions:
        say(version)
    say(f"answers at {place.url}")


@app.command()
def status(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where the endpoint answers.")],
) -> None:
    """Show the versions of a running endpoint and their shares."""
    from heliostat.serve.health import Address

    for line in Address(url).health().lines:
        say(line)


@app.command()
def key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who will use the key.")],
    file: KeyFile = DEFAULT_KEYS,
    remove: Annotated[bool, typer.Option("--remove", help="Take the key away.")] = False,
) -> None:
    """Make a key for an endpoint, shown once and kept only as a hash; or remove one."""
    from heliostat.serve.keys import add_key, remove_key
    from heliostat.storage import Location

    if remove:
        remove_key(Location.of(file), name)
        say(f"removed {name} from {file}; within seconds no endpoint takes the key any more")
        return
    token = add_key(Location.of(file), name)
    say(token)
    note(f"This is the only time that the key is shown; {file} has its hash.")


def split_words(words: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Words of the config, and names of bundles."""
    given = list(words or ())
    return [word for word in given if "=" in word], [word for word in given if "=" not in word]


def lineup_from(
    job: str,
    overrides: Sequence[str],
    named: Sequence[str],
    shares: Sequence[str],
    shadow: str | None,
) -> Lineup:
    """The versions named on the command line; by default the champion, else the newest bundle."""
    from heliostat.serve.lineup import Lineup, Share
    from heliostat.serve.local import bundles_of

    bundles = bundles_of(job, overrides)
    copied = None if shadow is None else bundles.find(shadow)
    parsed = [*((name, None) for name in named), *(_share(word) for word in shares)]
    if not parsed:
        return Lineup((Share(bundles.default()),), copied)
    without = [name for name, percent in parsed if percent is None]
    if len(without) > 1:
        raise UserError(
            f"{' and '.join(without)} have no share; give one to all but one: "
            f"--bundle {without[1]}=10"
        )
    given = sum(percent for _, percent in parsed if percent is not None)
    versions = tuple(
        Share(bundles.find(name), 100 - given if percent is None else percent)
        for name, percent in parsed
    )
    return Lineup(versions, copied)


def _share(word: str) -> tuple[str, float | None]:
    name, equals, percent = word.rpartition("=")
    if not equals:
        return word, None
    try:
        return name, float(percent)
    except ValueError:
        raise ConfigError(f"--bundle {word}: {percent!r} is no number of percent") from None


@app.command()
def load(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where the endpoint answers.")],
    key: Annotated[
        str | None,
        typer.Option("--key", envvar="HELIOSTAT_KEY", help="A key; or set HELIOSTAT_KEY."),
    ] = None,
    rates: Annotated[
        str, typer.Option("--rates", help="Requests a second, one run for each.")
    ] = "1,2,5,10,20",
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            help="Length of each run; by default 20 on this machine and 300 elsewhere.",
        ),
    ] = None,
) -> None:
    """Load-test an endpoint with the examples of its page; requests come at random, as in life."""
    import asyncio

    from heliostat.serve.load import load as load_once
    from heliostat.serve.load import seconds_for, target_of

    seconds = seconds_for(url) if seconds is None else seconds

    try:
        wanted = [float(rate) for rate in rates.split(",")]
    except ValueError:
        raise ConfigError(f"--rates {rates}: expected numbers such as 1,5,20") from None
    if min(wanted) <= 0 or seconds <= 0:
        raise ConfigError(f"--rates {rates} --seconds {seconds:g}: expected numbers above 0")
    target = asyncio.run(target_of(url))
    found = [asyncio.run(load_once(target, key, rate, seconds)) for rate in wanted]
    columns = (
        *("requests/s", "sent", "peak 1-minute mean, ms", "p50, ms", "p99, ms", "max, ms"),
        "errors",
    )
    rows = [
        (
            one.rate,
            one.sent,
            round(one.peak_minute_ms, 1),
            round(one.p50_ms, 1),
            round(one.p99_ms, 1),
            round(one.max_ms, 1),
            ", ".join(f"{count} x {what}" for what, count in one.errors.items()) or "none",
        )
        for one in found
    ]
    show_table(f"{target.url}, {seconds:g} s each", columns, rows)
