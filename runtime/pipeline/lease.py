"""Exclusive use of the networks: a run's lease from its start to its end, and a thread's turn at the buffers."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sd2rt.engines.errors import RequestError

CLOSED = "this pipeline is closed: open it again"
_FIRST_WAIT_SECONDS = 1.0
"""Wait for a lease before garbage is collected, doubled each time: a collection takes tens of milliseconds."""


class Leases:
    """Grants leases, one at a time, and turns.

    A run's state lies in the denoiser's buffers between its steps, so it holds a lease over all of them. A call that
    leaves nothing in a buffer, such as decoding, takes only a turn, which may come between the steps of a run.
    """

    def __init__(self) -> None:
        self._free = threading.Lock()
        self._turn = threading.RLock()
        self._holder: threading.Thread | None = None
        """Thread that last used the current lease."""
        self.closed = False

    @property
    def held_here(self) -> bool:
        """True if this thread holds the lease."""
        return self._holder is threading.current_thread()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Have the buffers to this thread within a ``with`` block; may be nested.

        Raises:
            RequestError: the networks are closed.
        """
        with self._turn:
            if self.closed:
                raise RequestError(CLOSED)
            yield

    def acquire(self) -> Lease:
        """Wait until no other lease is held, and return a new one.

        Raises:
            RequestError: this thread holds a lease already, or the networks are closed.
        """
        if self.held_here:
            # A run that an exception's traceback held is dropped, but not collected yet.
            gc.collect()
        if self.held_here:
            raise RequestError(
                "this pipeline is in the middle of another run: take that run's result or close it first"
            )
        lease = Lease(self)
        lease.start()
        if self.closed:
            lease.end()
            raise RequestError(CLOSED)
        return lease

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold a lease and a turn within a ``with`` block; raises like :meth:`acquire`."""
        lease = self.acquire()
        try:
            with lease.use():
                yield
        finally:
            lease.end()

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Have the buffers for good: wait for the leases of other threads, and refuse all later use."""
        if self.held_here:
            with self._turn:
                self.closed = True
                yield
            return
        with self._free, self._turn:
            self.closed = True
            yield


class Lease:
    """Exclusive use of the networks from :meth:`start` to :meth:`end`, whichever thread ends it.

    Every use takes a turn and fails once the lease has ended. The next lease's first use waits for that turn, so
    :meth:`end` needs not wait for a use that is under way.
    """

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._held: list[bool] = []
        """One entry while the lease is held: whoever pops it releases the lock, once."""

    def start(self) -> None:
        """Wait until no other lease is held."""
        wait = _FIRST_WAIT_SECONDS
        while not self._leases._free.acquire(timeout=wait):
            # The holder may be a run that is dropped, but part of a cycle: nothing else may collect it.
            gc.collect()
            wait *= 2
        self._held.append(True)
        self._leases._holder = threading.current_thread()

    @property
    def ended(self) -> bool:
        return not self._held

    @contextmanager
    def use(self) -> Iterator[None]:
        """Use the buffers within a ``with`` block; the calling thread becomes the lease's holder.

        Raises:
            RequestError: the lease has ended, or the networks are closed.
        """
        with self._leases.turn():
            if self.ended:
                raise RequestError("this run is closed: start another")
            self._leases._holder = threading.current_thread()
            yield

    def end(self) -> None:
        """End the lease, without waiting; does nothing if it has ended."""
        try:
            self._held.pop()
        except IndexError:
            return
        self._leases._holder = None
        self._leases._free.release()
