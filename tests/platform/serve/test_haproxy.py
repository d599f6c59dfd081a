"""HAProxy with the changed configuration: what it refuses, and what it lets through."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from certificates import write_certificate
from ray_head import free_ports

from heliostat.config.settings import (
    MOST_IN_FLIGHT_VARIABLE,
    TLS_CERTIFICATE_VARIABLE,
    TLS_KEY_VARIABLE,
)
from heliostat.serve import haproxy
from heliostat.serve.errors import too_busy

WRITTEN = """global
    maxconn 100
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    option redispatch 1
    retry-on conn-failure empty-response
    errorfile 502 /nowhere/500.http
    errorfile 503 /nowhere/500.http
    errorfile 504 /nowhere/500.http
frontend prometheus
    bind :{metrics}
    mode http
    http-request use-service prometheus-exporter
frontend http_frontend
    bind 127.0.0.1:{port}
    use_backend http-support_templates
backend default_backend
    http-request return status 404
backend http-support_templates
    http-reuse always
{servers}
listen stats
  bind *:{stats}
  stats enable
"""
MOST = 2


@dataclass(frozen=True)
class Tls:
    """A certificate of its own for a host that is not the replica's address."""

    folder: Path

    @classmethod
    def made_in(cls, folder: Path) -> Tls:
        write_certificate(folder, "suggestions.example.com")
        return cls(folder)

    def variables(self) -> dict[str, str]:
        return {
            TLS_CERTIFICATE_VARIABLE: str(self.folder / "chain.pem"),
            TLS_KEY_VARIABLE: str(self.folder / "key.pem"),
        }

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "chain.pem", self.folder / "key.pem")
        return context

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.folder / "chain.pem"))
        context.check_hostname = False
        return context


class Replica:
    """A real server whose POSTs wait until they are let go."""

    def __init__(self, stop: Callable[[], Awaitable[None]]) -> None:
        self.stop = stop
        self.go, self.inside = asyncio.Event(), 0
        self.is_full = asyncio.Event()

    async def post(self, _: web.Request) -> web.Response:
        self.inside += 1
        if self.inside == MOST:
            self.is_full.set()
        await self.go.wait()
        return web.json_response({"done": True})

    async def get(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})


@asynccontextmanager
async def proxied(
    folder: Path, most: str | None, tls: Tls | None = None
) -> AsyncIterator[tuple[str, Replica]]:
    """`heliostat-haproxy` as Serve would start it, before a replica."""
    (backend,) = free_ports(1)
    app = web.Application()
    runner = web.AppRunner(app)
    replica = Replica(runner.cleanup)
    app.router.add_post("/ask", replica.post)
    app.router.add_get("/healthz", replica.get)
    await runner.setup()
    context = None if tls is None else tls.server()
    await web.TCPSite(runner, "127.0.0.1", backend, ssl_context=context).start()
    try:
        async with before([backend], folder, most, tls) as url:
            yield url, replica
    finally:
        await runner.cleanup()


@asynccontextmanager
async def before(
    backends: list[int], folder: Path, most: str | None, tls: Tls | None = None
) -> AsyncIterator[str]:
    """`heliostat-haproxy` before the ports of replicas."""
    port, stats, metrics = free_ports(3)
    file = folder / "haproxy.cfg"
    servers = "\n".join(f"    server at-{each} 127.0.0.1:{each}" for each in backends)
    file.write_text(WRITTEN.format(port=port, servers=servers, stats=stats, metrics=metrics))
    program = haproxy.program()
    assert program is not None
    environment = {**os.environ, **({} if most is None else {MOST_IN_FLIGHT_VARIABLE: most})}
    environment |= {} if tls is None else tls.variables()
    process = subprocess.Popen([program, "-db", "-f", file], env=environment)
    try:
        url = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"
        await _answers(f"{url}/healthz", process, True if tls is None else tls.client())
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


async def _answers(
    url: str, process: subprocess.Popen[bytes], context: ssl.SSLContext | bool
) -> None:
    async with asyncio.timeout(30), aiohttp.ClientSession() as session:
        while process.poll() is None:
            try:
                async with session.get(url, ssl=context) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                await asyncio.sleep(0.02)
    raise AssertionError(f"HAProxy ended with {process.returncode}")


@pytest.mark.parametrize("request_id", ["mine-1", "not allowed"])
def test_a_post_more_than_a_replica_may_have_is_refused_and_gets_pass(
    tmp_path: Path, request_id: str
) -> None:
    async def story() -> None:
        async with proxied(tmp_path, str(MOST)) as (url, replica), aiohttp.ClientSession() as ask:

            async def post() -> int:
                async with ask.post(f"{url}/ask", json={}) as answer:
                    return answer.status

            accepted = [asyncio.create_task(post()) for _ in range(MOST)]
            await replica.is_full.wait()
            headers = {"x-request-id": request_id}
            async with ask.post(f"{url}/ask", json={}, headers=headers) as answer:
                assert answer.status == 503
                assert answer.headers["retry-after"] == "1"
                assert answer.content_type == "application/json"
                assert await answer.json() == too_busy(1).body()
                said = answer.headers["x-request-id"]
                assert (said == request_id) == (request_id == "mine-1")
                assert len(said) >= 6
            async with ask.get(f"{url}/healthz") as answer:
                assert answer.status == 200
            replica.go.set()
            assert await asyncio.gather(*accepted) == [200] * MOST
            assert await post() == 200

    asyncio.run(story())


def test_a_body_that_does_not_come_takes_no_place_of_a_replica(tmp_path: Path) -> None:
    async def story() -> None:
        async with proxied(tmp_path, str(MOST)) as (url, replica), aiohttp.ClientSession() as ask:
            host, _, port = url.removeprefix("http://").partition(":")
            held = [await asyncio.open_connection(host, int(port)) for _ in range(2 * MOST)]
            for _, writer in held:
                writer.write(b"POST /ask HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n")
                await writer.drain()
            # Nothing tells whether HAProxy has read the heads.
            await asyncio.sleep(0.2)
            replica.go.set()
            async with ask.post(f"{url}/ask", json={}) as answer:
                assert answer.status == 200
            for _, writer in held:
                writer.close()

    asyncio.run(story())


def test_without_a_limit_nothing_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with proxied(tmp_path, None) as (url, replica), aiohttp.ClientSession() as ask:

            async def post() -> int:
                async with ask.post(f"{url}/ask", json={}) as answer:
                    return answer.status

            tasks = [asyncio.create_task(post()) for _ in range(3 * MOST)]
            await replica.is_full.wait()
            replica.go.set()
            assert await asyncio.gather(*tasks) == [200] * 3 * MOST

    asyncio.run(story())


def test_where_no_replica_answers_the_error_has_the_shape_of_all_errors(tmp_path: Path) -> None:
    async def story() -> None:
        async with proxied(tmp_path, str(MOST)) as (url, replica), aiohttp.ClientSession() as ask:
            await replica.stop()
            async with ask.post(f"{url}/ask", json={}) as answer:
                assert answer.status == 503
                assert answer.headers["retry-after"] == "1"
                assert (await answer.json())["error"]["code"] == "overloaded"

    asyncio.run(story())


SERVER = """
import os, signal, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        if sys.argv[2] == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        self.do_GET()

    def log_message(self, *said):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.parametrize("body_bytes", [2, 10_000])
@pytest.mark.parametrize("most", [str(MOST), None])
def test_what_a_killed_replica_had_is_answered_by_another(
    tmp_path: Path, most: str | None, body_bytes: int
) -> None:
    async def story() -> None:
        mortal, other = free_ports(2)
        killed = subprocess.Popen([sys.executable, "-c", SERVER, str(mortal), "dies"])
        stays = subprocess.Popen([sys.executable, "-c", SERVER, str(other), "answers"])
        try:
            await asyncio.gather(_listens(mortal), _listens(other))
            async with before([mortal, other], tmp_path, most) as url:
                host, _, port = url.removeprefix("http://").partition(":")
                reader, writer = await asyncio.open_connection(host, int(port))
                # A connection that has been used; head and body that arrive one after the other,
                # as most clients send them.
                head = f"POST /ask HTTP/1.1\r\nhost: x\r\ncontent-length: {body_bytes}\r\n\r\n"
                for _ in range(4):
                    writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
                    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
                    writer.write(head.encode())
                    await writer.drain()
                    # Nothing tells whether HAProxy has read the head.
                    await asyncio.sleep(0.1)
                    writer.write(b"x" * body_bytes)
                    async with asyncio.timeout(30):
                        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
                writer.close()
            assert killed.wait(30) == -signal.SIGKILL
        finally:
            for process in (killed, stays):
                process.kill()
                process.wait()

    asyncio.run(story())


async def _listens(port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionError:
                await asyncio.sleep(0.02)
            else:
                return writer.close()


def test_with_a_certificate_it_speaks_tls_to_clients_and_to_replicas(tmp_path: Path) -> None:
    tls = Tls.made_in(tmp_path)

    async def story() -> None:
        async with proxied(tmp_path, str(MOST), tls) as (url, replica):
            replica.go.set()
            connector = aiohttp.TCPConnector(ssl=tls.client())
            async with (
                aiohttp.ClientSession(connector=connector) as ask,
                ask.post(f"{url}/ask", json={"n": 1}) as answer,
            ):
                assert (answer.status, await answer.json()) == (200, {"done": True})
            async with aiohttp.ClientSession() as ask:
                with pytest.raises(aiohttp.ClientError):
                    await ask.get(url.replace("https:", "http:") + "/healthz")

    asyncio.run(story())


def test_a_certificate_without_its_key_is_named(tmp_path: Path) -> None:
    file = tmp_path / "haproxy.cfg"
    file.write_text(WRITTEN.format(port=1, servers="", stats=3, metrics=4))
    program = haproxy.program()
    assert program is not None
    done = subprocess.run(
        [program, "-f", file],
        env={**os.environ, TLS_CERTIFICATE_VARIABLE: "chain.pem"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert f"set {TLS_CERTIFICATE_VARIABLE} and {TLS_KEY_VARIABLE}, or neither" in done.stderr


def test_its_own_pages_answer_on_this_machine_alone() -> None:
    text = haproxy.changed(WRITTEN.format(port=1, servers="", stats=3, metrics=4), None)
    assert "bind 127.0.0.1:3\n" in text
    assert "bind 127.0.0.1:4\n" in text
    assert "*" not in text


def test_what_serve_writes_has_the_places_that_are_changed() -> None:
    from ray.serve._private import haproxy_templates

    template = haproxy_templates.HAPROXY_CONFIG_TEMPLATE
    assert "\nbackend {{ backend.name or 'unknown' }}\n" in template
    assert "\nfrontend http_frontend\n    bind {{ config.frontend_host }}" in template
    assert all(
        f"\nerrorfile {status} " in template.replace("    ", "") for status in (502, 503, 504)
    )
    assert "\n    bind :{{ config.metrics_port }}\n" in template
    assert "\n  bind *:{{ config.stats_port }}\n" in template


def test_a_limit_that_is_no_number_is_named(tmp_path: Path) -> None:
    file = tmp_path / "haproxy.cfg"
    file.write_text(WRITTEN)
    program = haproxy.program()
    assert program is not None
    environment = {**os.environ, MOST_IN_FLIGHT_VARIABLE: "many"}
    done = subprocess.run(
        [program, "-db", "-f", file], env=environment, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "HELIOSTAT_MOST_IN_FLIGHT is 'many'; expected a whole number" in done.stderr
    assert file.read_text() == WRITTEN
