"""Schedule the text conditioning of every denoiser call from a prompt and its negative prompt."""

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

MAX_TOKENS = 77 * 16
"""The most tokens that the denoiser is exported for."""

States = NDArray[Any]  # [L, D]
CallStates = tuple[States, ...]
"""Hidden states of one text row for each call; calls with the same text share one array."""


def schedule_texts(
    encoder: TextEncoder,
    prompt: str | States,
    negative: str | States,
    *,
    guided: bool,
    syntax: PromptSyntax,
    clip_skip: int,
    calls: int,
    nominal_calls: int,
) -> tuple[TextConditioning, ...]:
    """Compute the text conditioning of each of ``calls`` denoiser calls; calls with the same texts share one object.

    The syntax ``plain`` follows diffusers: prompts are cut at 77 tokens, and ``clip_skip`` applies to the prompt
    only. The syntax ``a1111`` follows AUTOMATIC1111 for both prompts, see
    :mod:`~sd2rt.runtime.prompts.a1111.edits` and :mod:`~sd2rt.runtime.prompts.a1111.attention`; in a negative prompt,
    ``AND`` is an ordinary word. Prompts with explicit shares need the row of the negative prompt even without
    guidance.

    With ``a1111``, sequences of different lengths are repeated to their least common multiple. This is exact, because
    repeating a whole sequence does not change the result of attention.

    Args:
        prompt: a text, or its hidden states [L, D].
        negative: a text, or its hidden states; used only if needed.
        nominal_calls: requested number of steps, times evaluations per step, to which edits in a prompt refer.

    Raises:
        RequestError: the sequences' common length is too long, or the weights lead to values that are not finite.
    """
    edited = syntax == "a1111"
    conds: list[CallStates]
    shares: tuple[float, ...] = (1.0,)
    if not isinstance(prompt, str):
        conds = [(prompt,) * calls]
    elif edited:
        composed = compose(prompt)
        shares = tuple(share for _, share in composed)
        encoded = {
            text: _encode_edits(encoder, text, clip_skip, calls, nominal_calls) for text, _ in composed
        }
        conds = _pad_to_longest([encoded[text] for text, _ in composed])
    else:
        conds = [(encoder(prompt, clip_skip),) * calls]
    rows = conds
    if guided or shares != (1.0,):
        if not isinstance(negative, str):
            uncond: CallStates = (negative,) * calls
        elif edited:
            uncond = _encode_edits(encoder, negative, clip_skip, calls, nominal_calls)
        else:
            uncond = (encoder(negative),) * calls
        rows = [*conds, uncond]
    first, last = len(rows[0][0]), len(rows[-1][0])
    if edited:
        rows = _repeat_to_common_length(rows)
    elif first != last:
        raise RequestError(
            f"the prompt has {first} token embeddings and the negative prompt {last}: "
            "give prompt_embeds and negative_prompt_embeds of the same length"
        )
    conditionings: dict[tuple[int, ...], TextConditioning] = {}

    def conditioning(states: tuple[States, ...]) -> TextConditioning:
        key = tuple(map(id, states))
        if key not in conditionings:
            count = len(conds)
            conditionings[key] = TextConditioning(
                states[:count], states[count] if len(states) > count else None, shares
            )
        return conditionings[key]

    return tuple(conditioning(states) for states in zip(*rows, strict=True))


def _encode_edits(
    encoder: TextEncoder, prompt: str, clip_skip: int, calls: int, nominal_calls: int
) -> CallStates:
    edited = EditedPrompt(prompt)
    # AUTOMATIC1111 encodes these together, including texts that no call reaches: all affect the restored mean.
    versions = edited.versions(nominal_calls)
    arrays = dict(zip(versions, encoder.weighted(versions, clip_skip), strict=True))
    return tuple(arrays[text] for text in edited.texts(calls, nominal_calls))


def _pad_to_longest(rows: list[CallStates]) -> list[CallStates]:
    """Pad prompts joined by ``AND`` with the last vector of the shorter one, as AUTOMATIC1111 does."""
    longest = max(len(row[0]) for row in rows)

    def pad(array: States) -> States:
        return np.concatenate([array, array[-1:].repeat(longest - len(array), 0)])

    return [row if len(row[0]) == longest else _map_states(row, pad) for row in rows]


def _repeat_to_common_length(rows: list[CallStates]) -> list[CallStates]:
    """Repeat whole sequences to their least common multiple."""
    first, last = len(rows[0][0]), len(rows[-1][0])
    common = math.lcm(first, last)
    if common > MAX_TOKENS:
        raise RequestError(
            f"the prompt has {first} token embeddings and the negative prompt {last}: repeated to their common "
            f"length of {common}, they exceed {MAX_TOKENS}; make them shorter or equally long"
        )
    return [
        row
        if len(row[0]) == common
        else _map_states(row, lambda array: np.tile(array, (common // len(array), 1)))
        for row in rows
    ]


def _map_states(row: Sequence[States], change: Callable[[States], States]) -> CallStates:
    """Change each distinct array once; calls that shared an array still do."""
    changed: dict[int, States] = {}
    for array in row:
        if id(array) not in changed:
            changed[id(array)] = change(array)
            changed[id(array)].flags.writeable = False
    return tuple(changed[id(array)] for array in row)
