"""What a running endpoint says of itself, as its client sees it."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from heliostat.errors import UserError

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Health:
    """What one replica answers with."""

    replica: str
    percents: Mapping[str, float]
    """Share of each version."""
    shadow: str | None
    lineup: str | None
    """Id of the newest lineup that it took or refused."""
    is_lineup_refused: bool
    """That lineup could not be loaded, and the one before answers."""

    @property
    def lines(self) -> list[str]:
        """The versions, a line each."""
        found = [f"{percent:g} %  version {name}" for name, percent in self.percents.items()]
        return [*found, f"shadow  version {self.shadow}"] if self.shadow else found


@dataclass(frozen=True)
class Address:
    """Where an endpoint answers."""

    url: str
    certificate: str | None = None
    """PEM file with the certificate that it speaks HTTPS with; None: one that is trusted here."""

    @property
    def is_local(self) -> bool:
        """Whether it leads to this machine."""
        return is_local(self.url)

    def health(self) -> Health:
        """Ask one of its replicas; raises `UserError` when there is no answer."""
        try:
            with urllib.request.urlopen(
                f"{self.url.rstrip('/')}/healthz", timeout=TIMEOUT_S, context=self._context()
            ) as answer:
                found: dict[str, Any] = json.load(answer)
            return Health(
                replica=str(found["replica"]),
                percents={str(one["version"]): one["percent"] for one in found["versions"]},
                shadow=found["shadow"],
                lineup=found.get("lineup"),
                is_lineup_refused=bool(found["refused_lineup"]),
            )
        except (urllib.error.URLError, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"no endpoint of Heliostat answers at {self.url}: {error}") from None

    def _context(self) -> ssl.SSLContext | None:
        if not self.url.startswith("https:"):
            return None
        context = ssl.create_default_context(cafile=self.certificate)
        # The certificate names the host that clients use, and here we come by 127.0.0.1.
        context.check_hostname = not (self.certificate is not None and self.is_local)
        return context


def is_local(url: str) -> bool:
    """Whether a URL leads to this machine."""
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
