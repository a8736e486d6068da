"""The public way in: a bundle opened on a device, and prompts made into images."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle import Bundle, open_bundle
from sd2rt.engines.errors import RequestError
from sd2rt.engines.manifest import Manifest, PartName
from sd2rt.engines.ort import OnnxRuntimeEngine
from sd2rt.engines.sampling import SamplerConfig, check_side
from sd2rt.engines.session import Device
from sd2rt.runtime.call import CallOptions, divide
from sd2rt.runtime.generator import Generator
from sd2rt.runtime.plan import Plan
from sd2rt.runtime.request import Request
from sd2rt.runtime.run import Output, Run
from sd2rt.runtime.samplers import SamplingOptions, make_plan, sampler_config
from sd2rt.runtime.text import TextEncoder
from sd2rt.runtime.tokenizer import Tokenizer
from sd2rt.runtime.trajectory import Latents, Trajectory

Callback = Callable[["Pipeline", int, float, dict[str, Any]], Mapping[str, Any] | None]


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

    def engine(self, part: PartName) -> OnnxRuntimeEngine:
        """The engine of a part.

        Raises:
            RequestError: the pipeline is closed.
        """
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
        **options: Unpack[CallOptions],
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

    def stream(self, prompt: str | Sequence[str] | None = None, **options: Unpack[CallOptions]) -> Run:
        """The same call as a :class:`Run`: iterate over its steps, then take its result."""
        return Run(self, divide(prompt, options))

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

    def trajectories(self, request: Request, seed: int) -> list[Trajectory]:
        """A request's images at their start: planned, encoded, their noise drawn.

        Raises:
            RequestError: the request cannot be honoured by this bundle.
        """
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

    def decode(self, latents: Latents) -> NDArray[np.float32]:
        """Latents [C, h, w], as the sampler leaves them, to an image [3, H, W], nominally in [-1, 1]."""
        _, h, w = latents.shape
        session = self.engine("decoder").session({"B": 1, "h": h, "w": w})
        session.buffers["latents"].write(latents[None])
        session.launch()
        return cast(NDArray[np.float32], session.buffers["image"].read()[0])

    def acquire(self) -> None:
        """Have the engines' buffers to oneself until :meth:`release`; waits for other threads.

        Raises:
            RequestError: this thread has them already, or the pipeline is closed.
        """
        if self._owner == threading.get_ident():
            raise RequestError(
                "this pipeline is in the middle of another run: take its result or close it first"
            )
        self._lock.acquire()
        if not self._engines:
            self._lock.release()
            raise RequestError("this pipeline is closed: open it again")
        self._owner = threading.get_ident()

    def release(self) -> None:
        """Let others have them."""
        self._owner = None
        self._lock.release()
