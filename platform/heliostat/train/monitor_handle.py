"""How the processes of a training reach its monitor.

On other people's clusters the monitor is an actor, which Ray finds from every node. On a cluster of
our own the processes are all on this machine and end with the driver. There the monitor is an
object of the driver, and workers call it over a local socket that only those who hold its key can
speak to: a process fewer to start for each training, and one fewer to share two cores with.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from heliostat.cluster.ray_cluster import owns_cluster
from heliostat.train.monitor import Monitor

logger = logging.getLogger(__name__)

ANSWER_S = 30.0

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


class MonitorHandle(Protocol):
    """What a training's processes hold of its monitor; travels to workers."""

    def call(
        self,
        method: Callable[Concatenate[Monitor, Given], Answer],
        *arguments: Given.args,
        **named: Given.kwargs,
    ) -> Answer:
        """Call a method of the monitor; an exception if no answer comes within `ANSWER_S`."""
        ...


def start_monitor() -> MonitorHandle:
    """A new monitor, on the driver's node, and the handle of it."""
    return _Here.of_new() if owns_cluster() else _Actor.of_new()


@dataclass(frozen=True)
class _Actor:
    """A monitor that is an actor."""

    actor: Any

    @classmethod
    def of_new(cls) -> _Actor:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        return cls(ray.remote(num_cpus=0, scheduling_strategy=here)(Monitor).remote())

    def call(
        self,
        method: Callable[Concatenate[Monitor, Given], Answer],
        *arguments: Given.args,
        **named: Given.kwargs,
    ) -> Answer:
        import ray

        asked = getattr(self.actor, method.__name__).remote(*arguments, **named)
        answer: Answer = ray.get(asked, timeout=ANSWER_S)
        return answer


@dataclass(frozen=True)
class _Here:
    """A monitor in the driver, on the machine where all its workers are."""

    name: str
    driver: int
    """Process id."""
    address: tuple[str, int]
    key: bytes

    @classmethod
    def of_new(cls) -> _Here:
        switchboard = _switchboard()
        name = uuid.uuid4().hex
        switchboard.monitors[name] = Monitor()
        return cls(name, os.getpid(), switchboard.address, switchboard.key)

    def call(
        self,
        method: Callable[Concatenate[Monitor, Given], Answer],
        *arguments: Given.args,
        **named: Given.kwargs,
    ) -> Answer:
        call = self.name, method.__name__, arguments, named
        if os.getpid() == self.driver:
            answer: Answer = _switchboard().answer(*call)
            return answer
        # A connection a call: they come twice a second, and a broken one can then not be met again.
        with Client(self.address, authkey=self.key) as connection:
            connection.send(call)
            if not connection.poll(ANSWER_S):
                raise TimeoutError(f"the driver did not answer within {ANSWER_S:.0f} s")
            answer = connection.recv()
        return answer


class _Switchboard:
    """The monitors of this process, and the socket at which they are called."""

    def __init__(self) -> None:
        self.monitors: dict[str, Monitor] = {}
        self.key = os.urandom(32)
        # A signal may ask for a stop while its thread is in here.
        self._lock = threading.RLock()
        self._listener = Listener(("127.0.0.1", 0), backlog=64, authkey=self.key)
        self.address = self._listener.address
        threading.Thread(target=self._listen, name="monitors", daemon=True).start()

    def answer(
        self, name: str, method: str, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        with self._lock:
            return getattr(self.monitors[name], method)(*arguments, **named)

    def _listen(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except (AuthenticationError, EOFError, OSError) as error:
                logger.debug("a call to the monitor was refused: %s", error)
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection[Any, Any]) -> None:
        with connection:
            try:
                connection.send(self.answer(*connection.recv()))
            except (EOFError, OSError) as error:
                logger.debug("a caller of the monitor hung up: %s", error)


_made: _Switchboard | None = None
_making = threading.Lock()


def _switchboard() -> _Switchboard:
    global _made
    with _making:
        if _made is None:
            _made = _Switchboard()
        return _made
