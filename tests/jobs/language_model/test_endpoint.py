"""The whole way: `heliostat serve language_model` on Ray Serve, and the official openai client."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from example_job import command_environment
from openai import OpenAI
from ray_head import free_ports
from served_endpoint import published_metrics
from served_lm import NAME, write_lm_bundle

ROOT = Path(__file__).parents[3]
START_S = 240

pytestmark = pytest.mark.slow


@dataclass
class Served:
    """A running endpoint."""

    url: str
    key: str
    pid: int

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    write_lm_bundle(folder / "bundle")
    (port,) = free_ports(1)
    given = command_environment(folder)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "heliostat.cli.main", "serve", "language_model", "bundle"),
            *(f"serve.http.port={port}", "generation.cache_tokens=2000"),
        ],
        cwd=folder,
        env={**given, "PYTHONPATH": f"{given['PYTHONPATH']}{os.pathsep}{ROOT}"},
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
    key = re.search(r"hs_\S+", "".join(said))
    assert key is not None, "".join(said)
    yield Served(f"http://127.0.0.1:{port}", key[0], process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130


def test_one_streams_while_another_cancels_and_a_third_sends_too_much(served: Served) -> None:
    client = served.client()
    asked = {"model": NAME, "prompt": "once upon a time", "max_tokens": 200, "temperature": 0}
    alone = client.completions.create(**asked)  # type: ignore[call-overload]
    parts: list[str] = []
    times: list[float] = []

    def read() -> None:
        for part in served.client().completions.create(**asked, stream=True):  # type: ignore[call-overload]
            parts.append(part.choices[0].text)
            times.append(time.monotonic())

    reader = threading.Thread(target=read)
    reader.start()
    leaving = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": "the lazy dog"}], stream=True, seed=1
    )
    for _ in range(3):
        next(iter(leaving))
    leaving.close()
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model=NAME, prompt="fox " * 700, max_tokens=5)
    assert caught.value.status_code == 413
    reader.join(120)
    assert "".join(parts) == alone.choices[0].text
    # Told as they come, not at the end.
    assert len(set(times)) > 10


def test_keys_models_and_errors_are_those_of_every_endpoint(served: Served) -> None:
    assert next(model.id for model in served.client().models.list()) == NAME
    with pytest.raises(openai.PermissionDeniedError):
        OpenAI(base_url=f"{served.url}/v1", api_key="hs_no", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError):
        served.client().completions.create(model="gpt-9", prompt="a")


def test_every_metric_of_the_dashboard_of_generation_is_published(served: Served) -> None:
    dashboard = (ROOT / "cluster" / "grafana" / "generation.json").read_text()
    asked = set(re.findall(r"ray_heliostat_\w+", dashboard))
    assert len(asked) >= 6
    prompt = "a prompt that is longer than one page of the cache, so that it is found again"
    for _ in range(2):
        served.client().completions.create(model=NAME, prompt=prompt, max_tokens=4)
    until = time.monotonic() + 60
    while missing := {name for name in asked if f"\n{name}{{" not in published_metrics(served.pid)}:
        assert time.monotonic() < until, missing
        time.sleep(1)
    text = published_metrics(served.pid)
    for kind in ("prompt", "reused", "new"):
        assert re.search(rf'serve_tokens_total{{.*kind="{kind}".*}} [1-9]', text)
