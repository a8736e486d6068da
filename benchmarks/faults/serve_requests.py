"""Requests that a worker must survive: of clients that leave, with hostile input, and very many."""

from __future__ import annotations

import asyncio
import io
import os
import time
from random import Random
from typing import Any

from PIL import Image

from benchmarks.faults.recorder import Outcome, Recorder
from benchmarks.faults.served import LONG, Served, asked, since, until
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import GenerationRequest

BLOCK = 25
"""Requests of a case where memory is compared."""
_WARM_BLOCKS = 8
_BOUND_BYTES = 50 << 20

_STRINGS = (
    b"/etc/passwd",
    b"-",
    b"file:///etc/passwd",
    b"http://127.0.0.1:1/a.png",
    b"data:image/png;base64,AAAA",
    b"",
)


async def leaving(recorder: Recorder, served: Served, cases: int, source: Random) -> None:
    """Clients that leave waiting, in a step, in a decode or before anything was sent."""
    process, before = served.worker, None
    await served.fill_pools()
    for case in range(cases):
        others = [
            asyncio.create_task(served.completed(asked(number, num_inference_steps=LONG)))
            for number in (1, 2)
        ]
        steps = source.choice((1, 3, 20, LONG))
        leaver = asyncio.create_task(served.completed(asked(3, num_inference_steps=steps)))
        if source.random() < 0.5:
            # Its turn comes: it leaves in a step or in a decode, else while it waits.
            await _cancel(others)
        await asyncio.sleep(source.choice((0, 0.003, 0.03, 0.3)) * source.random())
        left, is_done = time.monotonic(), leaver.done()
        await _cancel([leaver, *others])
        await until(served.is_free)
        freed = since(left)
        fault = await served.fault()
        threads, descriptors, _ = served.resources()
        before = before or (threads, descriptors)
        label = f"{case}: {steps} steps, {'after its end' if is_done else 'before its end'}"
        if fault is None and served.worker != process:
            fault = "the worker died"
        if fault is not None:
            recorder.record("clients that leave", "wrong", label, fault)
        elif threads > before[0] or descriptors > before[1]:
            detail = f"threads {before[0]} to {threads}, descriptors {before[1]} to {descriptors}"
            recorder.record("clients that leave", "left behind", label, detail)
        else:
            recorder.record("clients that leave", "held", label, f"places free after {freed}")


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def hostile(recorder: Recorder, served: Served, cases: int, source: Random) -> None:
    """Strings as images, bombs, random bytes, and random values of fields, beside a request that is as usual."""
    process = served.worker
    for case in range(cases):
        request = _hostile(case, source)
        beside = asyncio.create_task(served.undisturbed())
        try:
            async with asyncio.timeout(60):
                await served.completed(request)
            code = "finished"
        except ServerError as error:
            code = error.code
        except TimeoutError:
            code = "hang"
        result = await beside
        assert served.expected is not None
        label = f"{case}: {request.fields} {[(name, data[:20]) for name, data in request.images.items()]}"[
            :300
        ]
        if code in ("internal_error", "worker_died", "hang") or served.worker != process:
            recorder.record("hostile requests", "hang" if code == "hang" else "wrong", label, code)
        elif result.images != served.expected.images:
            recorder.record("hostile requests", "wrong", label, "the request beside it has another picture")
        elif (fault := await served.fault()) is not None:
            recorder.record("hostile requests", "wrong", label, fault)
        else:
            recorder.record("hostile requests", "held", label, code)


def _hostile(case: int, source: Random) -> GenerationRequest:
    kind = source.randrange(5)
    if kind == 4:
        # Out of memory, or not finite.
        return asked(case, width=source.choice((192, 320)))
    if kind == 0:
        role = source.choice(("image", "mask", "depth_map"))
        return asked(case, images={role: source.choice((*_STRINGS, source.randbytes(500)))})
    if kind == 1:
        file = io.BytesIO()
        Image.new(source.choice(("1", "L")), (20_000, 20_000)).save(file, source.choice(("PNG", "JPEG")))
        return asked(case, images={"image": file.getvalue()})
    if kind == 2:
        file = io.BytesIO()
        Image.frombytes("RGB", (32, 32), source.randbytes(3072)).save(
            file, source.choice(("PNG", "JPEG", "WEBP"))
        )
        damaged = bytearray(file.getvalue())
        for _ in range(source.randrange(1, 20)):
            damaged[source.randrange(len(damaged))] = source.randrange(256)
        return asked(case, images={"image": bytes(damaged)})
    names = (
        "prompt",
        "seed",
        "width",
        "sampler",
        "guidance_scale",
        "eta",
        "sigmas",
        "clip_skip",
        "image",
        "latents",
    )
    values: tuple[Any, ...] = (
        None,
        True,
        -1,
        0,
        2**70,
        1e300,
        "",
        "/etc/passwd",
        "x" * 30_000,
        [],
        [1] * 2000,
        {},
        {"a": [None]},
    )
    changed: dict[str, Any] = {source.choice(names): source.choice(values) for _ in range(2)}
    return asked(case, **changed)


async def many(recorder: Recorder, served: Served, requests: int, source: Random) -> None:
    """Many requests, four at a time: memory, threads and descriptors stay as they are."""
    first: tuple[int, int, int] | None = None
    had = len(os.listdir("/proc/self/fd"))
    for block in range(max(requests // BLOCK, 1)):
        for start in range(0, BLOCK, 4):
            await asyncio.gather(
                *(served.completed(_varied(source)) for _ in range(start, min(start + 4, BLOCK)))
            )
        threads, descriptors, memory = state = served.resources()
        case = f"requests {block * BLOCK} to {(block + 1) * BLOCK}"
        if first is None:
            recorder.record("many requests", "held", case, f"{memory / 1e6:.0f} MB")
            first = state if block + 1 >= min(_WARM_BLOCKS, requests // BLOCK - 1) else None
        elif threads > first[0] or descriptors > first[1]:
            detail = f"threads {first[0]} to {threads}, descriptors {first[1]} to {descriptors}"
            recorder.record("many requests", "left behind", case, detail)
        else:
            growth = memory - first[2]
            outcome: Outcome = "memory" if growth > _BOUND_BYTES else "held"
            recorder.record(
                "many requests", outcome, case, f"{growth / 1e6:+.1f} MB since block {_WARM_BLOCKS}"
            )
    own = len(os.listdir("/proc/self/fd"))
    detail = f"descriptors {had} to {own}"
    recorder.record("many requests", "held" if own <= had else "left behind", "the front", detail)


def _varied(source: Random) -> GenerationRequest:
    return asked(
        source.getrandbits(32),
        num_inference_steps=source.randint(1, 4),
        sampler=source.choice(("ddim", "euler-a", "dpmpp-2m", "unipc")),
        width=64 * source.randint(1, 2),
    )
