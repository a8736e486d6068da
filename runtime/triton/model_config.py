"""Triton's `config.pbtxt` of a bundle."""

from __future__ import annotations

from sd2rt.runtime.triton.tensors import INPUTS, OUTPUTS


def model_config(name: str, *, streams: bool) -> str:
    """Return the text of ``config.pbtxt``.

    Args:
        name: of the model; letters, digits, dots, hyphens and underscores.
        streams: several responses a request, one a step; otherwise one response, which clients of HTTP can take too.
    """
    inputs = ",\n".join(
        f'  {{ name: "{each}" data_type: {kind} dims: [ 1 ]{"" if each == "prompt" else " optional: true"} }}'
        for each, kind in INPUTS.items()
    )
    outputs = ",\n".join(
        f'  {{ name: "{each}" data_type: {kind} dims: [ {length} ] }}'
        for each, (kind, length) in OUTPUTS.items()
        if streams or each in ("image", "seed", "facts")
    )
    return (
        f'name: "{name}"\n'
        'backend: "python"\n'
        "# Requests of all kinds share denoiser calls step by step in the worker: Triton must not batch them.\n"
        "max_batch_size: 0\n"
        f"model_transaction_policy {{ decoupled: {str(streams).lower()} }}\n"
        f"input [\n{inputs}\n]\n"
        f"output [\n{outputs}\n]\n"
        "# The worker has the device: this process has none, and one serves all requests.\n"
        "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
    )
