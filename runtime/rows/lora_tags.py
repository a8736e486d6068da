"""LoRAs that a prompt names, as in AUTOMATIC1111's <lora:name:0.8>, from the files of one folder."""

from __future__ import annotations

import os
from pathlib import Path

from sd2rt.engines.errors import RequestError
from sd2rt.engines.near_matches import did_you_mean
from sd2rt.engines.printable import shown
from sd2rt.runtime.prompts.syntax import NAMED_NETWORK, parse_network

_SUFFIX = ".safetensors"
_MOST_NAMED = 20


class LoraFolder:
    """LoRA files by name, in a folder and the folders in it.

    Args:
        folder: value of ``--lora-dir``.

    Raises:
        RequestError: it is not a folder.
    """

    def __init__(self, folder: str) -> None:
        if not os.path.isdir(folder):
            raise RequestError(
                f"--lora-dir {shown(folder)} is not a folder: name the folder of the LoRAs' files"
            )
        self._folder = folder
        self._files: dict[str, Path] | None = None

    def find(self, name: str) -> Path | None:
        """Return the file of a LoRA by its name, with or without its suffix; None if there is none."""
        if self._files is None:
            self._files = {}
            for place, folders, files in os.walk(self._folder):
                folders.sort()
                for file in sorted(files):
                    if file.lower().endswith(_SUFFIX):
                        self._files.setdefault(file[: -len(_SUFFIX)], Path(place, file))
        return self._files.get(name.removesuffix(_SUFFIX))

    def word(self, name: str, scale: float, text_scale: float) -> str:
        """Return the word for ``--lora`` of a LoRA and its scales.

        Raises:
            RequestError: the folder has no such file.
        """
        path = self.find(name)
        if path is None:
            names = sorted(self._files or ())
            listed = ", ".join(map(shown, names[:_MOST_NAMED])) or "none"
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            raise RequestError(
                f"no LoRA is named {shown(name)} in {shown(self._folder)}: {did_you_mean(name, names)}"
                f"it has {listed}{more}"
            )
        return lora_word(path, scale, text_scale)

    def taken_from(self, prompt: str) -> tuple[str, tuple[str, ...]]:
        """Return a prompt without its tags, and the words for ``--lora`` of the LoRAs that they name, in order.

        Raises:
            RequestError: a tag is of another kind, has scales that are not numbers, or names no file.
        """
        words = []
        for tag in NAMED_NETWORK.finditer(prompt):
            if tag[1] == "hypernet":
                raise RequestError(
                    f"the prompt contains {shown(tag[0])}, but hypernetworks are not supported: remove it"
                )
            try:
                name, scale, text_scale = parse_network(tag[2])
            except ValueError:
                raise RequestError(
                    f"the prompt contains {shown(tag[0])}, whose scale is not one number, or one each for text "
                    "encoder and UNet: write it as <lora:name:0.8>, or <lora:name:0.5:0.8>"
                ) from None
            words.append(self.word(name.strip(), scale, text_scale))
        return (NAMED_NETWORK.sub("", prompt).strip() if words else prompt), tuple(words)


def lora_word(path: Path, scale: float, text_scale: float) -> str:
    """Return the word for ``--lora`` of a file and its scales."""
    return f"{path}:{scale!r}" if text_scale == scale else f"{path}:{scale!r}:{text_scale!r}"
