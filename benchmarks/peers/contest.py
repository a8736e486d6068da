"""Peers that take turns: prepared, opened, their first images compared, then an image each, round after round."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.catalogue import LEAST_PSNR_DB, REFERENCE, Peer
from benchmarks.peers.client import Client, PeerError, PeerUnavailableError
from benchmarks.peers.groups import free_bytes
from benchmarks.peers.images import difference
from benchmarks.peers.job import Image, Job
from benchmarks.recording import process

SETTLE_SECONDS = 0.3
"""Between two turns: threads may spin for a while after their last operator, which is not to fall on the next."""


@dataclass(slots=True)
class Found:
    """What is known of a peer."""

    peer: Peer
    reason: str | None = None
    """Why it is not measured, or not to the end."""
    version: dict[str, str] = field(default_factory=dict)
    prepare_seconds: float = 0.0
    open_seconds: float = 0.0
    warmup_seconds: float = 0.0
    image: dict[str, Any] | None = None
    peak_rss_bytes: int = 0
    rounds: dict[int, dict[str, float]] = field(default_factory=dict)
    """By the round's number: seconds_per_step (median over an image) and seconds_per_image."""
    idle_seconds: float = 0.0
    idle_cpu_seconds: float = 0.0
    """What it used while the others had their turns."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for all peers."""

    steps: int
    pairs: int
    seed: int
    pythons: Mapping[str, str]
    """The interpreter by the peer's name; this one for others."""
    env: Mapping[str, str]
    scratch: Path
    limit_seconds: float
    images: Path | None = None
    """Where every peer's image is kept, as NAME.npy."""


class Contest:
    """The peers of one run."""

    def __init__(self, jobs: Mapping[str, Job], peers: Sequence[Peer], settings: Settings) -> None:
        self._jobs, self._settings = jobs, settings
        self.found = {peer.name: Found(peer) for peer in peers}
        self.others_cpu_seconds = 0.0
        self.reference: str | None = None
        """Whose image those of the others are compared with: diffusers', or of the first that made one without it."""
        self.crowded: list[list[str]] = []
        """Groups whose processes took more than the memory that was free."""
        self._compared: Image | None = None
        self._round = 0

    def prepare(self) -> list[Peer]:
        """Each by itself, since an export takes much memory; those that can run."""
        for name in self.found:
            tell(f"{name}: preparing")
            try:
                with self._client(name, "prepare") as client:
                    reply = client.ask({"do": "prepare", "job": asdict(self._jobs[name])})
                    self.found[name].prepare_seconds = reply["prepare_seconds"]
            except PeerError as error:
                self._drop(name, error)
        return [found.peer for found in self.found.values() if found.reason is None]

    def run(self, groups: Sequence[Sequence[str]]) -> None:
        """Open the peers group by group, and let those of a group take turns. Who is in the next one too stays open.

        Groups with the reference come first: the others' images are compared with its own.
        """
        with ExitStack() as end:
            opened: dict[str, Client] = {}
            free = free_bytes()
            for group in sorted(groups, key=lambda group: REFERENCE not in group):
                for name in [name for name in opened if name not in group or not self._runs(name)]:
                    opened.pop(name).close()
                for name in sorted(group, key=lambda name: name != REFERENCE):
                    if self._runs(name) and name not in opened:
                        client = self._open(name, end)
                        if client is not None:
                            opened[name] = client
                self._take_turns({name: opened[name] for name in group if name in opened})
                if sum(self.found[name].peak_rss_bytes for name in opened) > free:
                    self.crowded.append(list(group))

    def _runs(self, name: str) -> bool:
        return self.found[name].reason is None

    def _open(self, name: str, end: ExitStack) -> Client | None:
        """Open a peer and let it make an image, which warms it up and is compared with the reference's.

        One that fails is closed at once: its memory is the others'. The others are closed at the ``end``.
        """
        tell(f"{name}: opening")
        found = self.found[name]
        with ExitStack() as failing:
            try:
                client = failing.enter_context(self._client(name, "run"))
                reply = client.ask({"do": "open", "job": asdict(self._jobs[name])})
                found.open_seconds, found.version = reply["open_seconds"], reply["version"]
                made = self._make(name, client)
                found.warmup_seconds = made["seconds_per_image"]
                if found.image is None:
                    self._compare(name)
            except PeerError as error:
                self._drop(name, error)
                return None
            end.enter_context(failing.pop_all())
            return client

    def _compare(self, name: str) -> None:
        image: Image = np.load(self._image(name))
        try:
            apart = difference(image, image if self._compared is None else self._compared)
        except ValueError as error:
            raise PeerError(str(error)) from error
        if self.reference is None:
            self.reference, self._compared = name, image
        # Of the two that rounds more coarsely.
        bound = min(LEAST_PSNR_DB[self.found[each].peer.precision] for each in (name, self.reference))
        psnr = apart["psnr_db"]
        found = apart | {"bound_db": bound, "comparable": psnr is None or psnr >= bound}
        self.found[name].image = found
        tell(f"{name}: {found['max_pixel']} of 255 from {self.reference}'s image at most")

    def _take_turns(self, clients: Mapping[str, Client]) -> None:
        busy, own = process.busy_seconds(), self._cpu(clients)
        idle: dict[str, tuple[float, float]] = {}
        time.sleep(SETTLE_SECONDS)
        for name, client in clients.items():
            idle[name] = (time.perf_counter(), client.cpu_seconds())
        for _ in range(self._settings.pairs):
            self._round += 1
            tell(f"round {self._round}: {', '.join(name for name in clients if self._runs(name))}")
            for name, client in clients.items():
                if not self._runs(name):
                    continue
                found, (since, cpu) = self.found[name], idle[name]
                found.idle_seconds += time.perf_counter() - since
                found.idle_cpu_seconds += client.cpu_seconds() - cpu
                try:
                    self._turn(name, client)
                except PeerError as error:
                    self._drop(name, error)
                time.sleep(SETTLE_SECONDS)
                idle[name] = (time.perf_counter(), client.cpu_seconds())
        used = self._cpu(clients) - own
        self.others_cpu_seconds += max(process.busy_seconds() - busy - used, 0.0)

    def _turn(self, name: str, client: Client) -> None:
        made = self._make(name, client)
        if not made["step_seconds"]:
            raise PeerError("it made one denoiser call, and the first is not timed: give more steps")
        self.found[name].rounds[self._round] = {
            "seconds_per_step": float(np.median(made["step_seconds"])),
            "seconds_per_image": made["seconds_per_image"],
        }

    def _make(self, name: str, client: Client) -> dict[str, Any]:
        request = {"do": "make", "steps": self._settings.steps, "seed": self._settings.seed}
        made = client.ask(request | {"path": str(self._image(name))})
        self.found[name].peak_rss_bytes = made["peak_rss_bytes"] or 0
        return made

    def _image(self, name: str) -> Path:
        return (self._settings.images or self._settings.scratch) / f"{name}.npy"

    def _client(self, name: str, what: str) -> Client:
        given, log = self._settings, self._settings.scratch / f"{name}-{what}.log"
        return Client(given.pythons.get(name, sys.executable), given.env, log, given.limit_seconds)

    def _drop(self, name: str, error: PeerError) -> None:
        text = str(error).replace(str(self._settings.scratch), "WORKDIR")
        self.found[name].reason = text
        tell(f"{name}: {'not available' if isinstance(error, PeerUnavailableError) else 'failed'}: {text}")

    @staticmethod
    def _cpu(clients: Mapping[str, Client]) -> float:
        return sum(client.cpu_seconds() for client in clients.values())


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
