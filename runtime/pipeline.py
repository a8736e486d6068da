"""The public way in: a bundle opened on a device, and prompts made into images."""

from __future__ import annotations

import collections.abc
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle import Bundle, open_bundle
from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.engines.manifest import Manifest, PartName
from sd2rt.engines.ort import OnnxRuntimeEngine
from sd2rt.engines.sampling import SamplerConfig, check_side
from sd2rt.engines.session import Device
from sd2rt.runtime.generator import Generator
from sd2rt.runtime.image import NotFiniteError, to_pil, to_unit
from sd2rt.runtime.plan import Plan
from sd2rt.runtime.request import OutputType, Request, make_request
from sd2rt.runtime.samplers import SamplingOptions, make_plan, sampler_config
from sd2rt.runtime.step_loop import Batch, run_steps
from sd2rt.runtime.text import TextEncoder
from sd2rt.runtime.tokenizer import Tokenizer
from sd2rt.runtime.trajectory import Latents, Trajectory

Callback = Callable[["Pipeline", int, float, dict[str, Any]], Mapping[str, Any] | None]


class Options(TypedDict, total=False):
    """Keyword arguments of a call; :class:`~sd2rt.runtime.request.Request` gives meanings and defaults."""

    negative_prompt: str | list[str] | None
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    height: int | None
    width: int | None
    num_images_per_prompt: int
    seed: int | None
    latents: NDArray[Any] | None
    prompt_embeds: NDArray[Any] | None
    negative_prompt_embeds: NDArray[Any] | None
    sampler: str | None
    schedule: str | None
    eta: float
    timesteps: Sequence[float] | None
    sigmas: Sequence[float] | None
    output_type: OutputType


@dataclass(frozen=True, slots=True)
class Output:
    """The images of a call, in the order of its prompts, and the seed that makes each again alone.

    ``images`` is a list of PIL images, or an array: [n, H, W, 3] in [0, 1] for output type ``np``,
    [n, C, h, w] for ``latent``.
    """

    images: Any
    seeds: list[int]


@dataclass(slots=True)
class Progress:
    """One denoiser call, just made. What it tells is of the moment: it is read before the next step is asked for."""

    batch: Batch
    done: int
    """Steps made over all images of the run."""
    total: int
    """Steps that all images of the run take together."""

    @property
    def step(self) -> int:
        """Calls made for the first image in the batch, from 1."""
        return self.batch.active[0].done

    @property
    def steps(self) -> int:
        """Calls that this image takes."""
        return self.batch.active[0].length

    @property
    def timestep(self) -> float:
        """The training timestep at which the network was called for it."""
        first = self.batch.active[0]
        return float(first.timesteps[first.done - 1])

    def latents(self) -> Latents:
        """A copy of the latents of the images in the batch, [B, C, h, w]."""
        return self.batch.latents()


class Pipeline:
    """A bundle, loaded and ready. Made by :meth:`open`; a context manager that owns the engines.

    Calls from several threads wait for each other.
    """

    def __init__(
        self, bundle: Bundle, engines: dict[PartName, OnnxRuntimeEngine], tokenizer: Tokenizer, max_batch: int
    ) -> None:
        self.bundle = bundle
        self.max_batch = max_batch
        self._engines = engines
        self._text = TextEncoder(bundle, engines["text_encoder"], tokenizer)
        self._lock = threading.Lock()
        self._owner: int | None = None

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str],
        *,
        device: str = "cpu",
        threads: int | None = None,
        max_batch: int = 4,
        cuda_graph: bool = False,
    ) -> Self:
        """Open a bundle by path or name, verify it, and load its parts.

        Args:
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            threads: CPU threads within an operator, None for one per core.
            max_batch: images denoised in one call at most; more wait for a place.
            cuda_graph: on a GPU, capture and replay CUDA graphs.

        Raises:
            BundleError: the bundle is missing, damaged or unsafe.
            MissingDependencyError: no ONNX Runtime for the device is installed.
            EngineError: a part cannot be loaded on the device.
            RequestError: no such device, or a number below 1.
        """
        place = Device(device)
        for name, number in (("threads", threads), ("max_batch", max_batch)):
            if number is not None and number < 1:
                raise RequestError(f"{name} is {number}: give at least 1")
        opened = open_bundle(bundle)
        engines: dict[PartName, OnnxRuntimeEngine] = {}

        def load(part: PartName) -> OnnxRuntimeEngine:
            entry = opened.manifest.parts[part]
            return OnnxRuntimeEngine(
                entry, opened.file(entry.onnxruntime), place, threads=threads, cuda_graph=cuda_graph
            )

        # Loading is mostly ONNX Runtime's optimiser, on one core and outside Python's lock.
        with ThreadPoolExecutor(len(opened.manifest.parts)) as pool:
            futures = {part: pool.submit(load, part) for part in opened.manifest.parts}
            tokenizer = Tokenizer(opened)
        for part, future in futures.items():
            engines[part] = future.result()
        return cls(opened, engines, tokenizer, max_batch)

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def close(self) -> None:
        """Free the engines; the pipeline cannot be used afterwards. Waits for runs of other threads."""
        own = self._owner == threading.get_ident()
        if not own:
            self._lock.acquire()
        try:
            engines, self._engines = self._engines, {}
            for engine in engines.values():
                engine.close()
        finally:
            if not own:
                self._lock.release()

    def _engine(self, part: PartName) -> OnnxRuntimeEngine:
        if part not in self._engines:
            raise RequestError("this pipeline is closed: open it again")
        return self._engines[part]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        callback_on_step_end: Callback | None = None,
        **options: Unpack[Options],
    ) -> Output:
        """Make images from one prompt or several, with diffusers' names and meanings.

        ``callback_on_step_end(pipe, step, timestep, {"latents": array})`` is called after every step; latents
        in what it returns take the place of the old ones. It sees one batch at a time: more images than
        the pipeline's ``max_batch`` come one batch after another. Image i of the call uses ``seed + i``.

        Raises:
            RequestError: an option is unknown or cannot be honoured.
            EngineError: the device failed, or a result is not finite.
        """
        with self.stream(prompt, **options) as run:
            for progress in run:
                if callback_on_step_end is not None:
                    given = {"latents": progress.latents()}
                    changed = callback_on_step_end(self, progress.step - 1, progress.timestep, given)
                    if changed is not None and "latents" in changed:
                        progress.batch.replace(np.asarray(changed["latents"], np.float32))
            outputs = run.result()
        seeds = [seed for output in outputs for seed in output.seeds]
        images = [image for output in outputs for image in output.images]
        return Output(images if run.requests[0].output_type == "pil" else np.stack(images), seeds)

    def stream(self, prompt: str | Sequence[str] | None = None, **options: Unpack[Options]) -> Run:
        """The same call as a :class:`Run`: iterate over its steps, then take its result."""
        return Run(self, _requests(prompt, options))

    def stream_requests(self, requests: Sequence[Request]) -> Run:
        """Several requests as one :class:`Run`; see :meth:`generate`."""
        if not requests:
            raise RequestError("there is no request to answer: give at least one")
        return Run(self, list(requests))

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """Answer several requests at once, each as it would have been answered alone.

        They may differ in everything; those of one size are denoised in shared batches.

        Raises:
            RequestError: a request cannot be honoured; none is begun.
            EngineError: the device failed, or a result is not finite.
        """
        with self.stream_requests(requests) as run:
            return run.result()

    def sampler_of(self, request: Request) -> SamplerConfig:
        """The sampler that a request will use."""
        own = self.manifest.sampler
        schedule: Any = request.schedule
        if schedule is not None and schedule not in ("leading", "trailing", "linspace"):
            raise RequestError(
                f"no schedule is named {schedule!r}: choose one of leading, trailing, linspace"
            )
        if request.sampler is None or request.sampler == own.name:
            return own if schedule is None else own.model_copy(update={"spacing": schedule})
        return sampler_config(request.sampler, own, schedule)

    def size_of(self, request: Request) -> tuple[int, int]:
        """Width and height in pixels of a request's images."""
        width, height = self.manifest.native_sizes[0]
        return (
            width if request.width is None else request.width,
            height if request.height is None else request.height,
        )

    def _plan(self, request: Request) -> Plan:
        custom = request.timesteps is not None or request.sigmas is not None
        options = SamplingOptions(
            num_inference_steps=None if custom else request.num_inference_steps,
            timesteps=request.timesteps,
            sigmas=request.sigmas,
            eta=request.eta,
        )
        return make_plan(self.manifest.noise, self.sampler_of(request), options)

    def _trajectories(self, request: Request, seed: int) -> list[Trajectory]:
        plan = self._plan(request)
        latents = self.manifest.latents
        width, height = self.size_of(request)
        for name, side in (("width", width), ("height", height)):
            check_side(name, side)
        shape = (latents.channels, height // latents.vae_factor, width // latents.vae_factor)
        count = request.num_images_per_prompt
        if request.latents is not None and request.latents.shape != (count, *shape):
            raise RequestError(
                f"latents have the shape {list(request.latents.shape)}, this request needs {[count, *shape]}"
            )
        cond, uncond = self._encode(request)
        trajectories = []
        for index in range(count):
            generator = Generator(seed + index)
            start = generator.randn(shape) if request.latents is None else request.latents[index]
            trajectories.append(
                Trajectory(
                    plan=plan,
                    latents=np.asarray(start, np.float32),
                    cond=cond,
                    uncond=uncond,
                    guidance_scale=request.guidance_scale if request.guided else 1.0,
                    guidance_rescale=request.guidance_rescale if request.guided else 0.0,
                    generator=generator,
                    seed=seed + index,
                )
            )
        return trajectories

    def _encode(self, request: Request) -> tuple[NDArray[Any], NDArray[Any] | None]:
        cond = self._embeds("prompt_embeds", request.prompt_embeds)
        if cond is None:
            assert request.prompt is not None
            cond = self._text(request.prompt)
        if not request.guided:
            return cond, None
        uncond = self._embeds("negative_prompt_embeds", request.negative_prompt_embeds)
        if uncond is None:
            uncond = self._text(request.negative_prompt or "")
        if uncond.shape != cond.shape:
            raise RequestError(
                f"the prompt has {len(cond)} token embeddings and the negative prompt {len(uncond)}: "
                "give prompt_embeds and negative_prompt_embeds of one length"
            )
        return cond, uncond

    def _embeds(self, name: str, embeds: NDArray[Any] | None) -> NDArray[Any] | None:
        if embeds is None:
            return None
        if embeds.ndim == 3 and len(embeds) == 1:
            embeds = embeds[0]
        if embeds.ndim != 2 or embeds.shape[1] != self._text.width or not len(embeds):
            raise RequestError(
                f"{name} has the shape {list(embeds.shape)}, expected [tokens, {self._text.width}]"
            )
        if not np.isfinite(embeds).all():
            raise RequestError(f"{name} holds values that are not finite")
        dtype = next(t.dtype for t in self.manifest.parts["denoiser"].inputs if t.name == "text")
        return embeds.astype(dtype)

    def _decode(self, latents: Latents) -> NDArray[np.float32]:
        _, h, w = latents.shape
        session = self._engine("decoder").session({"B": 1, "h": h, "w": w})
        session.buffers["latents"].write(latents[None])
        session.launch()
        return cast(NDArray[np.float32], session.buffers["image"].read()[0])

    def _acquire(self) -> None:
        if self._owner == threading.get_ident():
            raise RequestError(
                "this pipeline is in the middle of another run: take its result or close it first"
            )
        self._lock.acquire()
        if not self._engines:
            self._lock.release()
            raise RequestError("this pipeline is closed: open it again")
        self._owner = threading.get_ident()

    def _release(self) -> None:
        self._owner = None
        self._lock.release()


class Run:
    """Images being made. Iterate for the steps (progress, preview, stopping), then take :meth:`result`.

    It has the pipeline to itself until its result is taken or it is closed, which leaving a ``with`` block does.
    """

    def __init__(self, pipeline: Pipeline, requests: list[Request]) -> None:
        self.requests = requests
        self._pipeline = pipeline
        self._open = False
        pipeline._acquire()
        self._open = True
        try:
            self.seeds = [secrets.randbits(32) if r.seed is None else r.seed for r in requests]
            self._trajectories = [
                pipeline._trajectories(request, seed)
                for request, seed in zip(requests, self.seeds, strict=True)
            ]
        except BaseException:
            self.close()
            raise
        self.total = sum(t.length for group in self._trajectories for t in group)
        self._steps = _steps(pipeline, [t for group in self._trajectories for t in group], self.total)

    def __iter__(self) -> Iterator[Progress]:
        return self._steps

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give the pipeline back; steps not made by now will not be."""
        if self._open:
            self._open = False
            self._pipeline._release()

    def result(self) -> list[Output]:
        """Make the steps that remain, decode, and close; one output for each request.

        Raises:
            EngineError: the device failed, or an image is not finite; the first one's, when all are done.
        """
        return _unless_failed(self.outcomes())

    def outcomes(self) -> list[Output | EngineError]:
        """As :meth:`result`, with a request's error in its place where one of its images is not finite.

        Raises:
            EngineError: the device failed.
        """
        for _ in self._steps:
            pass
        return self._decode()

    def stop(self) -> list[Output]:
        """Decode what there is so far, without the steps that remain, and close; raises as :meth:`result`."""
        self._steps.close()
        return _unless_failed(self._decode())

    def _decode(self) -> list[Output | EngineError]:
        if not self._open:
            raise RequestError("this run is closed: make another")
        try:
            return [
                self._output(request, seed, group)
                for request, seed, group in zip(self.requests, self.seeds, self._trajectories, strict=True)
            ]
        finally:
            self.close()

    def _output(self, request: Request, seed: int, group: list[Trajectory]) -> Output | EngineError:
        for trajectory in group:
            if trajectory.error is not None:
                return trajectory.error
        seeds = [seed + index for index in range(len(group))]
        if request.output_type == "latent":
            return Output(np.stack([t.latents for t in group]), seeds)
        try:
            units = [to_unit(self._pipeline._decode(t.latents)) for t in group]
        except NotFiniteError as error:
            return error
        if request.output_type == "np":
            return Output(np.stack(units), seeds)
        return Output([to_pil(unit) for unit in units], seeds)


def _unless_failed(outcomes: list[Output | EngineError]) -> list[Output]:
    outputs: list[Output] = []
    for outcome in outcomes:
        if isinstance(outcome, EngineError):
            raise outcome
        outputs.append(outcome)
    return outputs


def _steps(
    pipeline: Pipeline, trajectories: list[Trajectory], total: int
) -> collections.abc.Generator[Progress]:
    # Not a method: a generator that held its run would keep a forgotten one, and so the pipeline, from release.
    done, groups = 0, dict[object, list[Trajectory]]()
    for trajectory in trajectories:
        groups.setdefault(trajectory.group, []).append(trajectory)
    for group in groups.values():
        with closing(run_steps(pipeline._engine("denoiser"), group, pipeline.max_batch)) as batches:
            for batch in batches:
                done += len(batch.active)
                yield Progress(batch, done, total)


def _requests(prompt: str | Sequence[str] | None, options: Options) -> list[Request]:
    """One request for each prompt of a call; what was given for all of them is divided."""
    fields: dict[str, Any] = dict(options)
    embeds, negative_embeds = fields.pop("prompt_embeds", None), fields.pop("negative_prompt_embeds", None)
    negative, latents, seed = (fields.pop(name, None) for name in ("negative_prompt", "latents", "seed"))
    if prompt is not None and not isinstance(prompt, str):
        prompts: list[str | None] = list(prompt)
        if not prompts:
            raise RequestError("the list of prompts is empty")
    elif embeds is not None and prompt is None:
        embeds = np.asarray(embeds)
        embeds = embeds if embeds.ndim == 3 else embeds[None]
        prompts = [None] * len(embeds)
    else:
        prompts = [prompt]
    count = len(prompts)
    if negative is not None and not isinstance(negative, str | list | tuple):
        raise RequestError(f"negative_prompt is {negative!r}: give a text, or a list of one for each prompt")
    negatives = [negative] * count if negative is None or isinstance(negative, str) else list(negative)
    if len(negatives) != count:
        raise RequestError(f"{len(negatives)} negative prompts for {count} prompts: give one, or one each")
    if negative_embeds is not None:
        negative_embeds = np.asarray(negative_embeds)
        negative_embeds = negative_embeds if negative_embeds.ndim == 3 else negative_embeds[None]
        if len(negative_embeds) not in (1, count):
            raise RequestError(f"{len(negative_embeds)} negative_prompt_embeds for {count} prompts")
    # What the division needs must be numbers already; the rest is checked with each request.
    given = {name: fields[name] for name in ("num_images_per_prompt",) if name in fields}
    each_count = make_request(prompt="", **given).num_images_per_prompt
    images = count * each_count
    seed = None if seed is None else make_request(prompt="", seed=seed).seed
    if latents is not None:
        latents = np.asarray(latents)
        if latents.ndim != 4 or len(latents) != images:
            raise RequestError(f"latents have the shape {list(latents.shape)}, expected [{images}, C, h, w]")
    requests = []
    for index in range(count):
        own = dict(fields, prompt=prompts[index], negative_prompt=negatives[index])
        if embeds is not None:
            own["prompt_embeds"] = embeds[index] if prompts[index] is None else embeds
        if negative_embeds is not None:
            own["negative_prompt_embeds"] = negative_embeds[index % len(negative_embeds)]
        if latents is not None:
            own["latents"] = latents[index * each_count : (index + 1) * each_count]
        if seed is not None:
            own["seed"] = seed + index * each_count
        requests.append(make_request(**own))
    return requests
