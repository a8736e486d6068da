"""The public entry point: open a bundle on a device and generate images from prompts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.engine_entry import BackendName
from sd2rt.engines.bundle.model_kinds import TaskName
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.bundle.schema import ComputePrecision
from sd2rt.engines.bundle.sizes import TILE
from sd2rt.engines.errors import RequestError
from sd2rt.engines.lora.file import Lora
from sd2rt.engines.lora.merge import merged_weights
from sd2rt.runtime.images.read import MAX_PIXELS
from sd2rt.runtime.metadata.png import Facts
from sd2rt.runtime.networks.networks import Networks
from sd2rt.runtime.networks.turns import Turns
from sd2rt.runtime.pipeline.batch_size import BatchSize
from sd2rt.runtime.pipeline.callback import Watching, latents_of, watched
from sd2rt.runtime.pipeline.image_job import ImageJob
from sd2rt.runtime.pipeline.loaded_bundle import LoadedBundle
from sd2rt.runtime.pipeline.opening import check_opening
from sd2rt.runtime.pipeline.output import Output, images_to_upscale, joined
from sd2rt.runtime.pipeline.prepare import prepare
from sd2rt.runtime.pipeline.run import Run
from sd2rt.runtime.provenance.safety import Flags, Safety, load_safety
from sd2rt.runtime.request.call import split_call
from sd2rt.runtime.request.fields import CallOptions, Images, OutputType
from sd2rt.runtime.request.planned import PlannedRequest, plan_requests
from sd2rt.runtime.request.request import Request
from sd2rt.runtime.request.resolve import require_task, resolve, task_of
from sd2rt.runtime.scheduling.work import NO_TERMS, Terms

_LOG = logging.getLogger(__name__)

Callback = Callable[["Pipeline", int, float, dict[str, Any]], Mapping[str, Any] | None]


class Pipeline(LoadedBundle):
    """A loaded bundle that generates images; made by :meth:`open`, a context manager that owns the engines."""

    _networks_type: ClassVar[type[Networks]] = Networks

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str],
        *,
        device: str = "cpu",
        threads: int | None = None,
        max_batch: int | Literal["auto"] | None = None,
        cuda_graph: bool | None = None,
        allow_cpu_fallback: bool = False,
        tile: int = TILE,
        backend: BackendName = "auto",
        precision: ComputePrecision | None = None,
        loras: Sequence[Lora] = (),
        turns: Turns | None = None,
        safety: str | Flags | Safety | None = None,
    ) -> Self:
        """Open a bundle by path or name, verify it, and load its parts.

        Parts that only some images need (encoder, depth estimator) are loaded on first use. OpenVINO compiles parts
        when the first image is generated, and again for the first image of another size or batch.

        Args:
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            threads: CPU threads per operator, at most 1024; None for one per core.
            max_batch: the most images denoised in one call; further images wait. None for 4, or the engines' limit
                if it is lower. ``auto`` measures calls of up to 16 images, within some ten seconds. On a GPU it is
                the smallest number at which an image costs within 5 % of the least; on a CPU 4, as for None, since
                pictures would otherwise differ between starts.
            cuda_graph: on a GPU, True captures and replays CUDA graphs and raises if that fails. None uses them with
                engines only, and continues without them, with a warning, if capture fails.
            allow_cpu_fallback: with ONNX Runtime on a GPU, warn about operators that would run on the CPU instead of
                raising an error.
            tile: the longest side of latents, a multiple of 8, that is encoded, decoded or upscaled at once. Larger
                latents are processed in tiles, which bounds memory.
            backend: ``onnxruntime``, ``openvino``, ``tensorrt`` or ``tensorrt-rtx``; ``auto`` uses the bundle's
                engines if they fit the GPU, else OpenVINO if ``precision`` is ``bf16``, else ONNX Runtime.
            precision: ``bf16`` to compute in bfloat16, on CPUs with instructions for it, or ``bf16-decoder`` to do so
                in the decoder only; None for the bundle's own precision.
            loras: LoRAs to load at once, without opening a part twice; see :meth:`load_lora`.
            turns: turns at the device, shared by pipelines; None for its own.
            safety: ``opennsfw``, ``module:function``, or a function that takes a picture and returns True to refuse
                it; an output with a refused image is an UnsafeContentError.

        Raises:
            BundleError: the bundle is missing, damaged or unsafe.
            MissingDependencyError: no backend for the device is installed, or the GPU does not exist.
            EngineError: a part cannot be loaded on the device.
            RequestError: an argument is unknown or outside its range, or a LoRA does not fit.
        """
        bundle, parsed_device = check_opening(
            bundle, device, backend, precision, threads=threads, max_batch=max_batch, tile=tile
        )
        checked = None if safety is None else load_safety(safety)
        opened = open_bundle(bundle)
        weights = merged_weights(opened, loras)
        networks = cls._networks_type(
            opened,
            parsed_device,
            threads=threads,
            cuda_graph=cuda_graph,
            allow_cpu_fallback=allow_cpu_fallback,
            tile=tile,
            backend=backend,
            precision=precision,
            weights=weights,
            turns=turns,
        )
        _LOG.info("opened %s: %s on %s, %s", opened.path, networks.backend, parsed_device, networks.precision)
        try:
            pipeline = cls(networks, BatchSize.choose(networks, max_batch), loras)
            pipeline.safety = checked
            return pipeline
        except BaseException:
            networks.close()
            raise

    def __repr__(self) -> str:
        closed = ", closed" if self._networks.closed else ""
        return (
            f"Pipeline({str(self.bundle.path)!r}, backend={self.backend!r}, device={str(self.device)!r}, "
            f"precision={self.precision!r}{closed})"
        )

    @overload
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        callback_on_step_end: Callback | None = None,
        progress: Watching = False,
        output_type: Literal["pil"] = "pil",
        **options: Unpack[CallOptions],
    ) -> Output: ...

    @overload
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        callback_on_step_end: Callback | None = None,
        progress: Watching = False,
        output_type: Literal["np", "latent"],
        **options: Unpack[CallOptions],
    ) -> Output[NDArray[np.float32]]: ...

    @overload
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        callback_on_step_end: Callback | None = None,
        progress: Watching = False,
        output_type: OutputType,
        **options: Unpack[CallOptions],
    ) -> Output[Any]: ...

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        callback_on_step_end: Callback | None = None,
        progress: Watching = False,
        output_type: OutputType = "pil",
        **options: Unpack[CallOptions],
    ) -> Output[Any]:
        """Generate images from one or several prompts; options have diffusers' names and meanings.

        ``callback_on_step_end(pipe, step, timestep, {"latents": array})`` is called after every step; if it returns
        a mapping with ``latents``, they replace the current ones. It receives one batch at a time: if there are more
        images than the pipeline's ``max_batch``, batches follow one another. Image i of the call uses ``seed + i``,
        or ``variation_seed + i`` if there is a variation.

        ``progress=True`` shows a bar on standard error, if that is a terminal; a function is called with the
        :class:`Progress` after every step, and an exception in it ends the call.

        Raises:
            RequestError: an option is unknown or cannot be honoured.
            EngineError: the device failed, or a result is not finite.
        """
        with watched(progress) as show, self.stream_call(prompt, output_type, options) as run:
            for state in run:
                if callback_on_step_end is not None:
                    latents = state.latents()
                    changes = callback_on_step_end(self, state.step - 1, state.timestep, {"latents": latents})
                    if (replacement := latents_of(changes, latents.shape)) is not None:
                        state.replace(replacement)
                show(state)
            outputs = run.result()
        return joined(outputs, output_type)

    @overload
    def stream(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        output_type: Literal["pil"] = "pil",
        **options: Unpack[CallOptions],
    ) -> Run: ...

    @overload
    def stream(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        output_type: Literal["np", "latent"],
        **options: Unpack[CallOptions],
    ) -> Run[NDArray[np.float32]]: ...

    @overload
    def stream(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        output_type: OutputType,
        **options: Unpack[CallOptions],
    ) -> Run[Any]: ...

    def stream(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        output_type: OutputType = "pil",
        **options: Unpack[CallOptions],
    ) -> Run[Any]:
        """Start the same call as a :class:`Run`: iterate over its steps, then take its result."""
        return self.stream_planned(self.plan(split_call(prompt, options, output_type)))

    def stream_call(
        self, prompt: str | Sequence[str] | None, output_type: OutputType, options: CallOptions
    ) -> Run[Any]:
        """Start a call whose images are returned as one output.

        Raises:
            RequestError: its images would be arrays of several sizes; or as :meth:`stream`.
        """
        planned = self.plan(split_call(prompt, options, output_type))
        if output_type != "pil" and len({self.size_of(each.request) for each in planned}) > 1:
            raise RequestError("images of several sizes do not fit in one array: use output_type 'pil'")
        return self.stream_planned(planned)

    @overload
    def stream_requests(self, requests: Sequence[Request[Images]]) -> Run[Images]: ...

    @overload
    def stream_requests(self, requests: Sequence[Request[Any]]) -> Run[Any]: ...

    def stream_requests(self, requests: Sequence[Request[Any]]) -> Run[Any]:
        """Start several requests as one :class:`Run`; see :meth:`generate`."""
        if not requests:
            raise RequestError("the list of requests is empty: give at least one")
        return self.stream_planned(self.plan(requests))

    def plan(self, requests: Sequence[Request[Images]]) -> list[PlannedRequest[Images]]:
        """Resolve requests and compute their steps, without running a network.

        Raises:
            RequestError: the bundle cannot do what a request asks for.
        """
        return plan_requests(requests, self.manifest, self.loras)

    def stream_planned(
        self,
        planned: Sequence[PlannedRequest[Images]],
        *,
        request_id: str | None = None,
        terms: Terms = NO_TERMS,
    ) -> Run[Images]:
        """Make planned requests as one :class:`Run`, named ``request_id`` in the log.

        Raises:
            RequestError: they were planned for another bundle; DeadlineUnreachableError by their terms.
        """
        path = self.bundle.path
        if any(each.build_key != self.manifest.build_key for each in planned):
            raise RequestError(f"requests were planned for another bundle than {path}: plan them again")
        return Run(self._loop, self._gate, planned, request_id, terms, Facts(self), self.safety)

    @overload
    def generate(self, requests: Sequence[Request[Images]]) -> list[Output[Images]]: ...

    @overload
    def generate(self, requests: Sequence[Request[Any]]) -> list[Output[Any]]: ...

    def generate(self, requests: Sequence[Request[Any]]) -> list[Output[Any]]:
        """Generate the images of several requests, with the same results as one by one.

        Requests may differ in every field; those of one image size share batches.

        Raises:
            RequestError: a request cannot be honoured; nothing has been generated.
            EngineError: the device failed, or a result is not finite.
        """
        with self.stream_requests(requests) as run:
            return run.result()

    def resolve(self, request: Request[Images]) -> Request[Images]:
        """Fill in the bundle's defaults for fields that the request leaves open.

        Raises:
            RequestError: the bundle cannot do the request's task; the error names the kind of bundle that can.
        """
        return resolve(request, self.manifest)

    def task_of(self, request: Request[Any]) -> TaskName:
        """Name the task of a request; raises RequestError like :meth:`resolve`."""
        return task_of(request, self.manifest).name

    def depth(self, image: Any, *, max_image_pixels: int = MAX_PIXELS) -> NDArray[np.float32]:
        """Estimate the depth of an image with a depth bundle: [H', W'], unscaled, larger values nearer.

        Raises:
            RequestError: the bundle has no depth estimator, or the image cannot be read.
        """
        require_task("depth-to-image", self.manifest)
        from sd2rt.runtime.images.init_image import load_image

        loaded = load_image(image, max_pixels=max_image_pixels)
        return self._networks.depth(loaded)

    @overload
    def upscale(
        self,
        images: Any,
        prompt: str | Sequence[str] | None = "",
        *,
        output_type: Literal["pil"] = "pil",
        **options: Unpack[CallOptions],
    ) -> Output: ...

    @overload
    def upscale(
        self,
        images: Any,
        prompt: str | Sequence[str] | None = "",
        *,
        output_type: Literal["np", "latent"],
        **options: Unpack[CallOptions],
    ) -> Output[NDArray[np.float32]]: ...

    @overload
    def upscale(
        self,
        images: Any,
        prompt: str | Sequence[str] | None = "",
        *,
        output_type: OutputType,
        **options: Unpack[CallOptions],
    ) -> Output[Any]: ...

    def upscale(
        self,
        images: Any,
        prompt: str | Sequence[str] | None = "",
        *,
        output_type: OutputType = "pil",
        **options: Unpack[CallOptions],
    ) -> Output[Any]:
        """Upscale images to four times their width and height.

        Args:
            images: one image or a list, of any type that ``image=`` accepts; or the output of another pipeline, of
                type ``pil`` or ``np``.
            prompt: description of the content; None if ``prompt_embeds`` is used.

        Raises:
            RequestError: the bundle is not an upscaler, or an option cannot be honoured.
            EngineError: the device failed, or a result is not finite.
        """
        require_task("upscaling", self.manifest)
        if "image" in options:
            raise RequestError("image= repeats the images to upscale: leave it out")
        inputs = images_to_upscale(images)
        options["image"] = inputs
        prompts = [prompt] * len(inputs) if isinstance(prompt, str) else prompt
        return self(prompts, output_type=output_type, **options)

    def prepare(self, request: Request[Any], seed: int) -> list[ImageJob]:
        """Prepare a request's images for their first step: plan it, encode its inputs, draw the noise.

        Raises:
            RequestError: the request cannot be honoured by this bundle.
        """
        (planned,) = self.plan([request])
        return prepare(self._networks, planned, seed)
