"""`heliostat serve` in a process of its own, and a client of it."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from example_job import command_environment
from ray_head import free_ports

ROOT = Path(__file__).parents[2]
START_S = 180
PUBLISHED_EVERY_S = 1.0
"""How often Ray's processes publish their metrics."""
SESSION = re.compile(r"/\S*/session_[0-9_-]+")


def published_metrics(pid: int) -> str:
    """What Prometheus would read of the cluster that the process `pid` started."""
    commands = [" ".join(one.cmdline()) for one in psutil.Process(pid).children()]
    session = next(found[0] for one in commands if (found := SESSION.search(one)))
    targets = json.loads((Path(session) / "prom_metrics_service_discovery.json").read_text())
    pages = []
    for target in targets[0]["targets"]:
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as answer:
            pages.append(answer.read().decode())
    return "\n".join(pages)


@dataclass
class Served:
    """A running endpoint."""

    url: str
    folder: Path
    process: subprocess.Popen[str]
    key: str
    dashboard: str
    versions: dict[str, str]
    """Version of each bundle in the folder."""
    settings: list[str]
    context: ssl.SSLContext | None = None
    """For HTTPS."""
    headers: dict[str, str] = field(default_factory=dict)
    """Of the last answer."""

    def ask(
        self, path: str, body: object = None, *, key: str | None = "", method: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON of an answer."""
        data = (
            body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        )
        headers = {"content-type": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {key or self.key}"
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60, context=self.context) as answer:
                self.headers = dict(answer.headers)
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            text, self.headers = error.read(), dict(error.headers)
            try:
                return error.code, json.loads(text)
            except ValueError:
                # Not the endpoint, but Serve's proxy without a replica.
                return error.code, {"text": text.decode()}

    def suggest(self, text: str = "my card was declined", **more: Any) -> dict[str, Any]:
        """An answer that must be one."""
        status, answer = self.ask("/v1/support/suggest", conversation(text, **more))
        assert status == 200, answer
        return answer

    def deploy(
        self, *bundles: str, shadow: str | None = None, settings: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """`heliostat serve build` and `deploy` with other bundles of the folder, or settings."""
        words = [word for bundle in bundles for word in ("--bundle", bundle)]
        words += ["--shadow", shadow] if shadow else []
        words += [*self.settings, *settings]
        built = self.heliostat("serve", "build", "support_templates", *words)
        assert built.returncode == 0, built.stderr
        return self.heliostat("serve", "deploy", "serve.yaml", "--address", self.dashboard)

    def metrics(self) -> str:
        """What Prometheus would read, from every process of its cluster."""
        return published_metrics(self.process.pid)

    def kill_replicas(self) -> None:
        """kill -9, as a machine that fails would."""
        for found in psutil.Process(self.process.pid).children(recursive=True):
            if "ServeReplica" in " ".join(found.cmdline()):
                found.kill()

    def heliostat(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "heliostat.cli.main", *words],
            cwd=self.folder,
            env=environment(self.folder),
            capture_output=True,
            text=True,
            timeout=180,
        )


def environment(folder: Path) -> dict[str, str]:
    given = command_environment(folder)
    return {
        **given,
        "PYTHONPATH": f"{given['PYTHONPATH']}{os.pathsep}{ROOT}",
        # Every 10 s otherwise, and tests wait for what is published.
        "RAY_metrics_report_interval_ms": str(int(1000 * PUBLISHED_EVERY_S)),
    }


def conversation(text: str, **more: Any) -> dict[str, Any]:
    return {"case_id": "case", "messages": [{"role": "customer", "text": text}], **more}


@contextmanager
def serving(
    folder: Path,
    versions: dict[str, str],
    *words: str,
    environment_more: dict[str, str] | None = None,
) -> Iterator[Served]:
    """An endpoint in a folder that holds bundles.

    Args:
        folder: where it runs; its keys and events go there.
        versions: of the bundles in the folder, by name.
        words: of the command line.
    """
    (port,) = free_ports(1)
    settings = [f"serve.http.port={port}", *(word for word in words if word.startswith("serve."))]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "heliostat.cli.main", "serve", "support_templates"),
            *settings,
            *(word for word in words if not word.startswith("serve.")),
        ],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said: list[str] = []
    timer = threading.Timer(START_S, process.kill)
    timer.start()
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if "Ctrl-C" in line:
            break
    timer.cancel()
    text = "".join(said)
    try:
        assert "Ctrl-C" in text, text
        url, key = re.search(r"page +(\S+)/", text), re.search(r"hs_\S+", text)
        address = re.search(r"--address (\S+)", text)
        assert url is not None
        yield Served(
            url=url[1],
            folder=folder,
            process=process,
            key=key[0] if key else "",
            dashboard=address[1] if address else "http://127.0.0.1:8265",
            versions=versions,
            settings=settings,
        )
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(180) == 130, text
