"""Run peers in turns: prepare and open them, compare their first images, then time one image each per round."""

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
"""Pause between turns: threads may spin after their last operator and would disturb the next peer."""


@dataclass(slots=True)
class PeerState:
    """Measurements of a peer so far."""

    peer: Peer
    reason: str | None = None
    """Reason that the peer was not measured, or stopped early."""
    version: dict[str, str] = field(default_factory=dict)
    prepare_seconds: float = 0.0
    open_seconds: float = 0.0
    warmup_seconds: float = 0.0
    image: dict[str, Any] | None = None
    peak_rss_bytes: int = 0
    rounds: dict[int, dict[str, float]] = field(default_factory=dict)
    """By round number: seconds_per_step (median within an image) and seconds_per_image."""
    idle_seconds: float = 0.0
    idle_cpu_seconds: float = 0.0
    """CPU time used during the turns of other peers."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings shared by all peers."""

    steps: int
    pairs: int
    seed: int
    pythons: Mapping[str, str]
    """Interpreters by peer name; the current interpreter for all others."""
    env: Mapping[str, str]
    scratch: Path
    limit_seconds: float
    images: Path | None = None
    """Folder for the peers' images, as NAME.npy."""


class Contest:
    """One run of a set of peers."""

    def __init__(self, jobs: Mapping[str, Job], peers: Sequence[Peer], settings: Settings) -> None:
        self._jobs, self._settings = jobs, settings
        self.states = {peer.name: PeerState(peer) for peer in peers}
        self.others_cpu_seconds = 0.0
        self.reference: str | None = None
        """Peer whose image is the reference: diffusers, or without it the first that generated one."""
        self.crowded: list[list[str]] = []
        """Groups whose processes used more than the free memory."""
        self._compared: Image | None = None
        self._round = 0

    def prepare(self) -> list[Peer]:
        """Prepare the peers one at a time, since exports need much memory; return those that can run."""
        for name in self.states:
            log(f"{name}: preparing")
            try:
                with self._client(name, "prepare") as client:
                    reply = client.ask({"do": "prepare", "job": asdict(self._jobs[name])})
                    self.states[name].prepare_seconds = reply["prepare_seconds"]
            except PeerError as error:
                self._drop(name, error)
        return [state.peer for state in self.states.values() if state.reason is None]

    def run(self, groups: Sequence[Sequence[str]]) -> None:
        """Open and time the peers group by group. A peer that is also in the next group stays open.

        Groups with the reference come first, so that its image exists when the others are compared.
        """
        with ExitStack() as end:
            opened: dict[str, Client] = {}
            free = free_bytes()
            for group in sorted(groups, key=lambda group: REFERENCE not in group):
                for name in [name for name in opened if name not in group or not self._is_running(name)]:
                    opened.pop(name).close()
                for name in sorted(group, key=lambda name: name != REFERENCE):
                    if self._is_running(name) and name not in opened:
                        client = self._open(name, end)
                        if client is not None:
                            opened[name] = client
                self._take_turns({name: opened[name] for name in group if name in opened})
                if sum(self.states[name].peak_rss_bytes for name in opened) > free:
                    self.crowded.append(list(group))

    def _is_running(self, name: str) -> bool:
        return self.states[name].reason is None

    def _open(self, name: str, end: ExitStack) -> Client | None:
        """Open a peer and generate its warm-up image, which is compared with the reference image.

        A peer that fails is closed at once to free its memory; the others are closed by ``end``.
        """
        log(f"{name}: opening")
        state = self.states[name]
        with ExitStack() as failing:
            try:
                client = failing.enter_context(self._client(name, "run"))
                reply = client.ask({"do": "open", "job": asdict(self._jobs[name])})
                state.open_seconds, state.version = reply["open_seconds"], reply["version"]
                reply = self._generate(name, client)
                state.warmup_seconds = reply["seconds_per_image"]
                if state.image is None:
                    self._compare(name)
            except PeerError as error:
                self._drop(name, error)
                return None
            end.enter_context(failing.pop_all())
            return client

    def _compare(self, name: str) -> None:
        image: Image = np.load(self._image(name))
        try:
            pixel_difference = difference(image, image if self._compared is None else self._compared)
        except ValueError as error:
            raise PeerError(str(error)) from error
        if self.reference is None:
            self.reference, self._compared = name, image
        # The bound of the coarser of the two precisions.
        bound = min(LEAST_PSNR_DB[self.states[each].peer.precision] for each in (name, self.reference))
        psnr = pixel_difference["psnr_db"]
        comparison = pixel_difference | {"bound_db": bound, "comparable": psnr is None or psnr >= bound}
        self.states[name].image = comparison
        log(f"{name}: largest difference from {self.reference}'s image: {comparison['max_pixel']} of 255")

    def _take_turns(self, clients: Mapping[str, Client]) -> None:
        busy, peers_cpu = process.busy_seconds(), self._cpu(clients)
        idle: dict[str, tuple[float, float]] = {}
        time.sleep(SETTLE_SECONDS)
        for name, client in clients.items():
            idle[name] = (time.perf_counter(), client.cpu_seconds())
        for _ in range(self._settings.pairs):
            self._round += 1
            log(f"round {self._round}: {', '.join(name for name in clients if self._is_running(name))}")
            for name, client in clients.items():
                if not self._is_running(name):
                    continue
                state, (since, cpu) = self.states[name], idle[name]
                state.idle_seconds += time.perf_counter() - since
                state.idle_cpu_seconds += client.cpu_seconds() - cpu
                try:
                    self._turn(name, client)
                except PeerError as error:
                    self._drop(name, error)
                time.sleep(SETTLE_SECONDS)
                idle[name] = (time.perf_counter(), client.cpu_seconds())
        used = self._cpu(clients) - peers_cpu
        self.others_cpu_seconds += max(process.busy_seconds() - busy - used, 0.0)

    def _turn(self, name: str, client: Client) -> None:
        reply = self._generate(name, client)
        if not reply["step_seconds"]:
            raise PeerError("it made only one denoiser call, and the first is not timed: increase --steps")
        self.states[name].rounds[self._round] = {
            "seconds_per_step": float(np.median(reply["step_seconds"])),
            "seconds_per_image": reply["seconds_per_image"],
        }

    def _generate(self, name: str, client: Client) -> dict[str, Any]:
        request = {"do": "make", "steps": self._settings.steps, "seed": self._settings.seed}
        reply = client.ask(request | {"path": str(self._image(name))})
        self.states[name].peak_rss_bytes = reply["peak_rss_bytes"] or 0
        return reply

    def _image(self, name: str) -> Path:
        return (self._settings.images or self._settings.scratch) / f"{name}.npy"

    def _client(self, name: str, stage: str) -> Client:
        settings, log = self._settings, self._settings.scratch / f"{name}-{stage}.log"
        return Client(settings.pythons.get(name, sys.executable), settings.env, log, settings.limit_seconds)

    def _drop(self, name: str, error: PeerError) -> None:
        text = str(error).replace(str(self._settings.scratch), "WORKDIR")
        self.states[name].reason = text
        log(f"{name}: {'not available' if isinstance(error, PeerUnavailableError) else 'failed'}: {text}")

    @staticmethod
    def _cpu(clients: Mapping[str, Client]) -> float:
        return sum(client.cpu_seconds() for client in clients.values())


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
