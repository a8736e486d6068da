"""Requests of `sd2rt run`, one for each image, made when they are needed: there may be millions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from sd2rt.engines.errors import RequestError

if TYPE_CHECKING:
    from sd2rt.engines.bundle.manifest import Manifest
    from sd2rt.engines.lora.file import Lora
    from sd2rt.runtime.request.planned import PlannedRequest
    from sd2rt.runtime.request.request import Request


class ImageRequests:
    """Requests for ``count`` images of each prompt, with consecutive seeds. All are checked when this is made.

    Args:
        fields: fields of all requests, without prompt and seed.
        seed: seed of the first image.

    Raises:
        RequestError: a field or a prompt is wrong for any bundle.
    """

    def __init__(self, prompts: Sequence[str], count: int, fields: dict[str, Any], seed: int) -> None:
        from sd2rt.runtime.request.call import split_call
        from sd2rt.runtime.request.fields import CallOptions
        from sd2rt.runtime.request.request import make_request
        from sd2rt.runtime.request.sampling import check_names

        if count < 1:
            raise RequestError(f"--count is {count}: give at least 1")
        self._prompts, self._count, self._seed = prompts, count, seed
        options = {**fields, "num_images_per_prompt": 1, "seed": seed}
        # Latents if a second pass follows on them.
        output_type = options.pop("output_type", "pil")
        (self.first,) = split_call([prompts[0]], cast(CallOptions, options), output_type)
        """Request of the first image; the others differ in prompt and seeds."""
        check_names(self.first)
        for prompt in prompts[1:]:
            make_request(prompt=prompt, prompt_syntax=self.first.prompt_syntax)
        make_request(prompt="", **self._seeds(len(self) - 1))

    def __len__(self) -> int:
        """Number of images."""
        return len(self._prompts) * self._count

    def planned(self, manifest: Manifest, loras: Sequence[Lora] = ()) -> PlannedImages:
        """Plan the requests for a bundle.

        Raises:
            RequestError: the bundle does not support them.
        """
        from sd2rt.runtime.request.planned import plan_requests

        return PlannedImages(self, plan_requests([self.first], manifest, loras)[0])

    def varying_fields(self, index: int) -> dict[str, Any]:
        """Fields of image ``index`` that differ from the first image's."""
        return {"prompt": self._prompts[index // self._count], **self._seeds(index)}

    def _seeds(self, index: int) -> dict[str, int]:
        seed, variation_seed = self.first.seeds_of(self._seed, index)
        return {"seed": seed} if variation_seed is None else {"seed": seed, "variation_seed": variation_seed}


class PlannedImages:
    """The requests of a run, planned for one bundle."""

    def __init__(self, requests: ImageRequests, first: PlannedRequest[Any]) -> None:
        self._requests, self._first = requests, first

    def __len__(self) -> int:
        """Number of images."""
        return len(self._requests)

    @property
    def first(self) -> Request[Any]:
        """Request of the first image."""
        return self._first.request

    def batches(self, size: int) -> Iterator[list[PlannedRequest[Any]]]:
        """Yield the planned requests in batches of up to ``size``, in order."""
        for start in range(0, len(self), size):
            yield [self._planned(index) for index in range(start, min(start + size, len(self)))]

    def _planned(self, index: int) -> PlannedRequest[Any]:
        # Neither the prompt nor the seed changes the plan.
        fields = self._requests.varying_fields(index)
        return replace(self._first, request=self._first.request.model_copy(update=fields))
