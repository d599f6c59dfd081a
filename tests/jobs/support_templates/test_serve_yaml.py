"""The YAML of an endpoint: what is written is accepted, and every mistake in it is named."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support_bundle import write_support_bundle

from heliostat.errors import ConfigError
from heliostat.serve.deployment import address_of, check, describe, read
from heliostat.serve.health import Address
from heliostat.serve.keys import add_key
from heliostat.serve.lineup import Lineup, Share
from heliostat.storage import Location


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("yaml")
    write_support_bundle(place / "one", 1)
    add_key(Location.of(place / "keys.json"), "crm")
    return place


@pytest.fixture
def words(folder: Path) -> list[str]:
    return [f"serve.keys={folder / 'keys.json'}", f"serve.events={folder / 'events.db'}"]


@pytest.fixture
def written(folder: Path, words: list[str]) -> dict[str, Any]:
    return describe("support_templates", words, Lineup((Share(str(folder / "one")),)))


def test_what_is_written_is_accepted_and_survives_yaml(
    written: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(written))
    assert read(file) == written
    assert address_of(written).url == "http://127.0.0.1:8000"


def test_replicas_that_scale_and_tls_are_written_as_serve_knows_them(
    folder: Path, words: list[str]
) -> None:
    more = [
        "serve.replicas=[1,4]",
        "serve.http.host=0.0.0.0",
        f"serve.http.tls_key={folder / 'key.pem'}",
        f"serve.http.tls_certificate={folder / 'chain.pem'}",
    ]
    made = describe("support_templates", [*words, *more], Lineup((Share(str(folder / "one")),)))
    check(made, "made")
    scaling = made["applications"][0]["deployments"][0]["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (1, 4)
    assert made["http_options"]["ssl_keyfile"] == str(folder / "key.pem")
    assert address_of(made) == Address("https://127.0.0.1:8000", str(folder / "chain.pem"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda raw: raw.update(proxy_locations="HeadOnly"),
            "no key proxy_locations; did you mean",
        ),
        (
            lambda raw: raw["applications"][0].update(route="/x"),
            "applications[0]: there is no key route",
        ),
        (
            lambda raw: raw["applications"][0]["deployments"][0].update(num_replica=2),
            "there is no key num_replica; did you mean num_replicas?",
        ),
        (lambda raw: raw["http_options"].update(port="many"), "http_options.port"),
        (
            lambda raw: raw["applications"][0]["args"]["overrides"].append("serve.limit.queue=1"),
            "there is no key 'serve.limit",
        ),
        (
            lambda raw: raw["applications"][0]["args"].update(job="support_template"),
            "did you mean support_templates?",
        ),
        (
            lambda raw: raw["applications"][0]["args"]["overrides"].append("serve.keys=gone.json"),
            "gone.json does not exist; make one",
        ),
        (
            lambda raw: raw["applications"][0]["deployments"][0]["user_config"].update(canary=1),
            "user_config has canary",
        ),
        (
            lambda raw: raw["applications"][0]["deployments"][0]["user_config"].update(
                shadow="nowhere"
            ),
            "nowhere is no complete bundle",
        ),
        (
            lambda raw: raw["applications"][0]["deployments"][0].pop("max_ongoing_requests"),
            "max_ongoing_requests is 5, so batches would never fill; expected at least 80",
        ),
        (lambda raw: raw["http_options"].update(port=True), "port is True; expected 1 to 65535"),
        (lambda raw: raw["applications"].clear(), "serve.yaml has no application"),
        (lambda raw: raw["applications"][0].pop("name"), "an application has no name"),
        (lambda raw: raw["applications"][0].update(route_prefix="/x"), "expected /"),
        (
            lambda raw: raw["applications"][0]["deployments"].append({"name": "other"}),
            "expected one deployment, named endpoint",
        ),
    ],
)
def test_a_mistake_is_named(
    written: dict[str, Any], spoil: Callable[[dict[str, Any]], None], said: str
) -> None:
    spoiled = copy.deepcopy(written)
    spoil(spoiled)
    with pytest.raises(ConfigError) as refused:
        check(spoiled, "serve.yaml")
    assert said in str(refused.value)
    assert str(refused.value).startswith("serve.yaml")


def test_whatever_a_value_is_replaced_by_is_accepted_or_named(written: dict[str, Any]) -> None:
    """Never a traceback: what a person may write into any place."""
    anything = [None, 1, -1, "x", "", [], {}, [1], {"a": 1}, True, 1e99, float("nan")]
    for path in places(written):
        for value in anything:
            spoiled: Any = copy.deepcopy(written)
            inner = spoiled
            for part in path[:-1]:
                inner = inner[part]
            inner[path[-1]] = value
            with contextlib.suppress(ConfigError):
                check(spoiled, "serve.yaml", is_here=False)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in nested mappings and lists."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        for part, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, part))


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; write one with"):
        read(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="holds no mapping"):
        read(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is no YAML"):
        read(tmp_path / "bad.yaml")
