"""A prompt and its negative to what each denoiser call is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.prompts.a1111.edits import EditedPrompt, compose
from sd2rt.runtime.prompts.encoder import TextEncoder
from sd2rt.runtime.prompts.syntax import PromptSyntax
from sd2rt.runtime.prompts.text_conditioning import TextConditioning

LONGEST = 77 * 16
"""Tokens that the denoiser is exported for."""

States = NDArray[Any]  # [L, D]
Line = tuple[States, ...]
"""One array for each call; calls that are told the same share one."""


def schedule_texts(
    encoder: TextEncoder,
    prompt: str | States,
    negative: str | States,
    *,
    guided: bool,
    syntax: PromptSyntax,
    clip_skip: int,
    calls: int,
    steps: int,
) -> tuple[TextConditioning, ...]:
    """What each of ``calls`` denoiser calls is told; calls that are told the same share one object.

    With the syntax ``plain`` a prompt is what diffusers makes of it: cut at 77 tokens, and ``clip_skip`` is the
    prompt's only, not the negative's. With ``a1111`` both are what AUTOMATIC1111 makes of them, see
    :mod:`~sd2rt.runtime.prompts.a1111.edits` and :mod:`~sd2rt.runtime.prompts.a1111.attention`; ``AND`` is a word in
    a negative prompt. Prompts that shares are given to need the negative's row even where there is no guidance.

    With ``a1111`` sequences of different length are repeated to their least common multiple. That is exact:
    attention to a sequence that is there twice is attention to it.

    Args:
        prompt: a text, or its hidden states [L, D].
        negative: likewise; read only where it is needed.
        steps: that were asked for, which numbers of steps in a prompt refer to.

    Raises:
        RequestError: the sequences have no common length that is short enough, or the weights leave values
            that are not finite.
    """
    edited = syntax == "a1111"
    lines: list[Line]
    shares: tuple[float, ...] = (1.0,)
    if not isinstance(prompt, str):
        lines = [(prompt,) * calls]
    elif edited:
        composed = compose(prompt)
        shares = tuple(share for _, share in composed)
        known = {text: _line(encoder, text, clip_skip, calls, steps) for text, _ in composed}
        lines = _of_one_length([known[text] for text, _ in composed])
    else:
        lines = [(encoder(prompt, clip_skip),) * calls]
    told = lines
    if guided or shares != (1.0,):
        if not isinstance(negative, str):
            uncond: Line = (negative,) * calls
        elif edited:
            uncond = _line(encoder, negative, clip_skip, calls, steps)
        else:
            uncond = (encoder(negative),) * calls
        told = [*lines, uncond]
    first, last = len(told[0][0]), len(told[-1][0])
    if edited:
        told = _repeated(told)
    elif first != last:
        raise RequestError(
            f"the prompt has {first} token embeddings and the negative prompt {last}: "
            "give prompt_embeds and negative_prompt_embeds of one length"
        )
    made: dict[tuple[int, ...], TextConditioning] = {}

    def texts(rows: tuple[States, ...]) -> TextConditioning:
        key = tuple(map(id, rows))
        if key not in made:
            split = len(lines)
            made[key] = TextConditioning(rows[:split], rows[split] if len(rows) > split else None, shares)
        return made[key]

    return tuple(texts(rows) for rows in zip(*told, strict=True))


def _line(encoder: TextEncoder, prompt: str, clip_skip: int, calls: int, steps: int) -> Line:
    edited = EditedPrompt(prompt)
    # All that AUTOMATIC1111 encodes together, which is more than what the calls say where one is never reached.
    versions = edited.versions(calls, steps)
    arrays = dict(zip(versions, encoder.weighted(versions, clip_skip), strict=True))
    return tuple(arrays[text] for text in edited.texts(calls, steps))


def _of_one_length(lines: list[Line]) -> list[Line]:
    """Prompts that ``AND`` joins: the last vector of a shorter one is repeated, as AUTOMATIC1111 has it."""
    longest = max(len(line[0]) for line in lines)

    def longer(array: States) -> States:
        return np.concatenate([array, array[-1:].repeat(longest - len(array), 0)])

    return [line if len(line[0]) == longest else _each(line, longer) for line in lines]


def _repeated(lines: list[Line]) -> list[Line]:
    """Sequences of one length: each is repeated whole."""
    first, last = len(lines[0][0]), len(lines[-1][0])
    common = math.lcm(first, last)
    if common > LONGEST:
        raise RequestError(
            f"the prompt has {first} token embeddings and the negative prompt {last}, and {common} would be needed "
            f"for both: make them shorter or of one length, at most {LONGEST}"
        )
    return [
        line
        if len(line[0]) == common
        else _each(line, lambda array: np.tile(array, (common // len(array), 1)))
        for line in lines
    ]


def _each(line: Sequence[States], change: Callable[[States], States]) -> Line:
    """Change every array once, and keep which calls share one."""
    changed: dict[int, States] = {}
    for array in line:
        if id(array) not in changed:
            changed[id(array)] = change(array)
            changed[id(array)].flags.writeable = False
    return tuple(changed[id(array)] for array in line)
