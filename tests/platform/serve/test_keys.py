"""Keys: only hashes at rest, several names, readable by their owner alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliostat.errors import ConfigError
from heliostat.serve.keys import Key, KeyRing, add_key, digest_of, read_keys, remove_key
from heliostat.serve.rate_limit import RateLimit
from heliostat.storage import Location


def test_a_key_opens_by_its_token_and_the_file_does_not_hold_it(tmp_path: Path) -> None:
    place = Location.of(tmp_path / "keys.json")
    tokens = {name: add_key(place, name) for name in ("crm", "shop")}
    text = (tmp_path / "keys.json").read_text()
    ring = KeyRing(read_keys(place))
    for name, token in tokens.items():
        assert ring.holder(token) == name
        assert token not in text
    assert ring.holder("hs_other") is None
    assert (tmp_path / "keys.json").stat().st_mode & 0o077 == 0


def test_a_removed_key_no_longer_opens(tmp_path: Path) -> None:
    place = Location.of(tmp_path / "keys.json")
    token = add_key(place, "crm")
    add_key(place, "shop")
    remove_key(place, "crm")
    ring = KeyRing(read_keys(place))
    assert ring.holder(token) is None
    assert ring.names == ("shop",)


def test_mistakes_are_told(tmp_path: Path) -> None:
    place = Location.of(tmp_path / "keys.json")
    with pytest.raises(ConfigError, match="does not exist; make one"):
        read_keys(place)
    add_key(place, "crm")
    with pytest.raises(ConfigError, match="has a key named crm already"):
        add_key(place, "crm")
    with pytest.raises(ConfigError, match="has no key named shop; it has crm"):
        remove_key(place, "shop")
    with pytest.raises(ConfigError, match="cannot name a key"):
        add_key(place, "../x")
    with pytest.raises(ConfigError, match="no SHA-256"):
        Key("crm", "plain text")
    with pytest.raises(ConfigError, match="two keys have one name"):
        KeyRing([Key("crm", digest_of("a")), Key("crm", digest_of("b"))])
    (tmp_path / "broken.json").write_text("[]")
    with pytest.raises(ConfigError, match="is no key file"):
        read_keys(Location.of(tmp_path / "broken.json"))


def test_a_rate_limit_grants_a_minutes_worth_at_once_and_then_evenly() -> None:
    limit = RateLimit(60)
    assert [limit.wait_s("a", 0.0) for _ in range(60)] == [0.0] * 60
    assert limit.wait_s("a", 0.0) == pytest.approx(1.0)
    assert limit.wait_s("b", 0.0) == 0.0
    assert limit.wait_s("a", 1.0) == 0.0
    assert limit.wait_s("a", 1.5) == pytest.approx(0.5)


def test_replicas_share_the_rate_of_a_key() -> None:
    limit = RateLimit(60, replicas=lambda: 3)
    assert [limit.wait_s("a", 0.0) for _ in range(20)] == [0.0] * 20
    assert limit.wait_s("a", 0.0) == pytest.approx(3.0)
