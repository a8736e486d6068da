"""Requests of a run, row by row: a row is read, checked and drawn before the next."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.rows import option_text
from sd2rt.runtime.rows.image_requests import ImageRequests
from sd2rt.runtime.rows.lora_tags import LoraFolder
from sd2rt.runtime.rows.row import Row

if TYPE_CHECKING:
    from sd2rt.engines.bundle.manifest import Manifest
    from sd2rt.engines.lora.file import Lora
    from sd2rt.runtime.rows.image_requests import PlannedImages

RANDOM = -1
"""Seed of the command line that stands for a random one."""


class Series:
    """Requests of each row, with the command's options where the row has none of its own.

    Args:
        fields: fields of all requests, without prompt and seed.
        count: images of a row.
        seed: seed of the first image; image i of all rows has the seed + i. None for random ones.
        folder: LoRAs that prompts name. All rows must name the same.
    """

    def __init__(
        self, fields: dict[str, Any], count: int, seed: int | None, folder: LoraFolder | None = None
    ) -> None:
        self._fields, self._count, self._folder = fields, count, folder
        self._seed = secrets.randbits(32) if seed is None else seed
        self._images = 0
        self.named_loras: tuple[str, ...] | None = None
        """Words for ``--lora`` of the LoRAs that the first prompt names."""

    def first(self, row: Row | RequestError) -> ImageRequests:
        """Return the requests of the first row.

        Raises:
            RequestError: it is wrong for any bundle.
        """
        requests = self.requests(row)
        if isinstance(requests, RequestError):
            raise requests
        return requests

    def planned(
        self,
        rows: Iterator[Row | RequestError],
        manifest: Manifest,
        loras: Sequence[Lora],
        check: Callable[[PlannedImages], None],
    ) -> Iterator[PlannedImages | RequestError]:
        """Yield the images of each further row, planned for a bundle, or the error in it.

        Args:
            check: raises RequestError for images that cannot be drawn.
        """
        for row in rows:
            requests = self.requests(row)
            if isinstance(requests, RequestError):
                yield requests
                continue
            assert isinstance(row, Row)
            try:
                planned = requests.planned(manifest, loras)
                check(planned)
            except RequestError as error:
                yield in_line(row, error)
                continue
            yield planned

    def requests(self, row: Row | RequestError) -> ImageRequests | RequestError:
        """Return the requests of the next row, or the error in it."""
        if isinstance(row, RequestError):
            return row
        seed, count = self.seed_of(row), self._count if row.count is None else row.count
        try:
            prompt, fields = self._without_loras(row)
            requests = ImageRequests([prompt], count, fields, seed)
        except RequestError as error:
            return in_line(row, error)
        self.skip(row)
        return requests

    def seed_of(self, row: Row) -> int:
        """Seed of the first image of the next row."""
        if row.seed == RANDOM:
            return secrets.randbits(32)
        return self._seed + self._images if row.seed is None else row.seed

    def skip(self, row: Row) -> None:
        """Go on to the row after this one."""
        self._images += self._count if row.count is None else row.count

    def _without_loras(self, row: Row) -> tuple[str, dict[str, Any]]:
        """Return the prompt without LoRAs that it names, and the row's fields; checks that all rows name the same."""
        fields = self._fields | row.fields
        sampler, schedule = (
            value if isinstance(value := row.fields.get(name), str) else None
            for name in ("sampler", "schedule")
        )
        fields |= option_text.sampler_and_schedule(sampler, schedule, fields.get("grid", "diffusers"))
        if self._folder is None or fields.get("prompt_syntax", "plain") != "a1111":
            return row.prompt, fields
        prompt, named = self._folder.taken_from(row.prompt)
        if self.named_loras is None:
            self.named_loras = named
        elif named != self.named_loras:
            expected = " and ".join(self.named_loras) or "none"
            raise RequestError(
                f"its LoRAs differ from the first prompt's, {expected}: use a command for each set of LoRAs"
            )
        return prompt, fields


def in_line(row: Row, error: RequestError) -> RequestError:
    """Return an error that names the row's line."""
    return error if row.line == 0 else RequestError(f"line {row.line}: {error}")
