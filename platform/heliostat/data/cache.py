"""A small thread-safe cache of the values used most recently, bounded by their weight.

It is not shared between processes and keeps nothing on disk.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Keeps values until their weights exceed `capacity`; the one unused for longest goes first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.weight = 0
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = Lock()

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def get(self, key: K, make: Callable[[K], V], weigh: Callable[[V], int] = lambda _: 1) -> V:
        """The kept value, or the one that `make(key)` gives now.

        The lock is not held while `make` runs: two threads that miss at the same time both make
        the value, and one of the two is kept.
        """
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
        value = make(key)
        weight = weigh(value)
        with self._lock:
            if key not in self._values:
                self._values[key] = (value, weight)
                self.weight += weight
            while self.weight > self.capacity and len(self._values) > 1:
                _, (_, dropped) = self._values.popitem(last=False)
                self.weight -= dropped
        return value

    def drop(self, key: K) -> None:
        """Forget a value, so that the next `get` makes it anew."""
        with self._lock:
            if key in self._values:
                self.weight -= self._values.pop(key)[1]
