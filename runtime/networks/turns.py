"""Turns of threads at the networks' buffers, in the order in which they ask."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Waiter:
    __slots__ = ("granted", "lock", "thread", "until")

    def __init__(self, until: Callable[[], bool] | None) -> None:
        self.thread, self.until, self.granted = threading.get_ident(), until, False
        self.lock = threading.Lock()
        self.lock.acquire()


class Turns:
    """A lock that is fair, may be nested, and lets a thread stop waiting once its wish is fulfilled by another."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._owner: int | None = None
        self._depth = 0
        self._waiters: deque[_Waiter] = deque()

    def take(self, until: Callable[[], bool] | None = None) -> bool:
        """Wait for a turn. Returns False, without one, if ``until`` became true first.

        Args:
            until: asked by the thread that has the turn, when it calls :meth:`wake` or :meth:`give`; must be quick.
        """
        thread = threading.get_ident()
        if self._owner == thread:
            self._depth += 1
            return True
        with self._mutex:
            if self._owner is None:
                self._owner, self._depth = thread, 1
                return True
            waiter = _Waiter(until)
            self._waiters.append(waiter)
        try:
            waiter.lock.acquire()
        except BaseException:
            with self._mutex:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
            if waiter.granted:
                self._pass_on()
            raise
        if waiter.granted:
            self._depth = 1
        return waiter.granted

    def give(self) -> None:
        """End the turn, or one nested in it."""
        self._depth -= 1
        if not self._depth:
            self._pass_on()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Have the buffers to this thread within a ``with`` block."""
        self.take()
        try:
            yield
        finally:
            self.give()

    @property
    def wanted(self) -> bool:
        """True if a thread waits for a turn of its own, not for what any thread's turn may bring."""
        return bool(self._waiters) and any(waiter.until is None for waiter in tuple(self._waiters))

    def wake(self) -> None:
        """Let threads go on whose wish is fulfilled."""
        if not self._waiters:
            return
        with self._mutex:
            waiting: deque[_Waiter] = deque()
            for waiter in self._waiters:
                if waiter.until is not None and waiter.until():
                    waiter.lock.release()
                else:
                    waiting.append(waiter)
            self._waiters = waiting

    def _pass_on(self) -> None:
        with self._mutex:
            while self._waiters:
                waiter = self._waiters.popleft()
                if waiter.until is not None and waiter.until():
                    waiter.lock.release()
                    continue
                self._owner, waiter.granted = waiter.thread, True
                waiter.lock.release()
                return
            self._owner = None
