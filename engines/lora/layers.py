"""Combine an adapter's tensors into changes of weights, by the kind of each layer's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from sd2rt.engines.errors import RequestError
from sd2rt.engines.lora.alphas import Alphas
from sd2rt.engines.lora.change import F32, Decomposed, Difference, LowRank, Scaling, WeightChange
from sd2rt.engines.lora.keys import Module, Role, parse_key
from sd2rt.engines.lora.products import Hadamard, Kronecker, Pair
from sd2rt.engines.printable import shown

Roles = Mapping[Role, F32]

_MAX_KEYS_SHOWN = 3
_COMMON = {"alpha", "magnitude", "output_norms"}
"""Roles beside those that tell the kind."""


def changes_of(path: Path, tensors: Mapping[str, F32], alphas: Alphas) -> dict[Module, WeightChange]:
    """Return the changes of a file's tensors, by layer.

    Raises:
        RequestError: a key is not known, or a layer's tensors are incomplete, do not match or are not finite.
    """
    return {
        changed: change
        for module, roles in _by_module(path, tensors).items()
        for changed, change in _changes(path, module, roles, alphas)
    }


def _by_module(path: Path, tensors: Mapping[str, F32]) -> dict[Module, dict[Role, F32]]:
    modules: dict[Module, dict[Role, F32]] = {}
    unknown = []
    for key, tensor in tensors.items():
        parsed = parse_key(key, factors=f"{key.removesuffix('.weight')}.on_input" in tensors)
        if parsed is None:
            unknown.append(key)
            continue
        module, role = parsed
        if not np.isfinite(tensor).all():
            raise RequestError(
                f"{path} has values that are not finite ({shown(key, 120)}): get the file again"
            )
        if role in modules.setdefault(module, {}):
            raise RequestError(f"{path} has two {role} tensors of {module}: it is damaged, get it again")
        modules[module][role] = tensor
    if unknown:
        raise RequestError(
            f"{path} is not a recognised Stable Diffusion 2 LoRA: {len(unknown)} of its {len(tensors)} keys, such as "
            f"{', '.join(shown(key, 120) for key in unknown[:_MAX_KEYS_SHOWN])}, do not fit the "
            "layouts of kohya, diffusers or PEFT"
        )
    return modules


def _changes(path: Path, module: Module, roles: Roles, alphas: Alphas) -> list[tuple[Module, WeightChange]]:
    kinds = set(roles) - _COMMON
    bias = replace(module, parameter="bias")
    if kinds == {"diff"}:
        return [(module, _decomposed(path, module, Difference(roles["diff"]), roles))]
    if kinds == {"factors", "on_input"}:
        return [(module, _scaling(path, module, roles["factors"], bool(roles["on_input"].any())))]
    if kinds == {"channels"}:
        return _channels(path, module, bias, roles["channels"], alphas)
    if any(role.startswith("hada_") for role in kinds):
        return [(module, _decomposed(path, module, _hadamard(path, module, roles, alphas), roles))]
    if any(role.startswith("lokr_") for role in kinds):
        return [(module, _decomposed(path, module, _kronecker(path, module, roles, alphas), roles))]
    low_rank = _low_rank(path, module, roles, alphas)
    if alphas.decomposed(module) and not {"magnitude", "output_norms"} & set(roles):
        raise RequestError(
            f"{path} lacks the norms of {module}, though it is a DoRA: it is damaged, get it again"
        )
    changes: list[tuple[Module, WeightChange]] = [(module, _decomposed(path, module, low_rank, roles))]
    if "up_bias" in roles:
        changes.append((bias, Difference(roles["up_bias"] * np.float32(low_rank.factor))))
    return changes


def _low_rank(path: Path, module: Module, roles: Roles, alphas: Alphas) -> LowRank:
    _require(path, module, roles, {"down", "up"}, {"mid", "up_bias"})
    down, up, mid = roles["down"], roles["up"], roles.get("mid")
    rank = down.shape[0] if down.ndim else 0
    valid = down.ndim in (2, 4) and up.ndim in (2, 4) and rank > 0 and up.shape[1:] in ((rank,), (rank, 1, 1))
    if mid is not None:
        valid = valid and mid.ndim == 4 and mid.shape[:2] == (rank, rank) and down.shape[2:] in ((), (1, 1))
    if not valid:
        raise _mismatch(path, module, up, mid, down)
    return LowRank(down, up, mid, _factor(path, module, roles, alphas, rank))


def _hadamard(path: Path, module: Module, roles: Roles, alphas: Alphas) -> Hadamard:
    names = {f"hada_w{number}_{side}" for number in (1, 2) for side in "ab"}
    _require(path, module, roles, names, {"hada_t1", "hada_t2"})
    first, second = (
        Pair(roles[f"hada_w{n}_a"], roles[f"hada_w{n}_b"], roles.get(f"hada_t{n}")) for n in (1, 2)
    )
    if not (first.valid and second.valid) or first.shape != second.shape:
        raise _mismatch(path, module, *(roles[name] for name in sorted(roles) if name.startswith("hada_")))
    return Hadamard(first, second, _factor(path, module, roles, alphas, first.rank))


def _kronecker(path: Path, module: Module, roles: Roles, alphas: Alphas) -> Kronecker:
    parts: list[F32 | Pair] = []
    names: set[str] = set()
    for stem in ("lokr_w1", "lokr_w2"):
        names |= {stem} if stem in roles else {f"{stem}_a", f"{stem}_b"}
    core = {"lokr_t2"} if "lokr_w2" not in roles else set()
    _require(path, module, roles, names, core)
    for stem in ("lokr_w1", "lokr_w2"):
        if stem in roles:
            parts.append(roles[stem])
        else:
            parts.append(
                Pair(
                    roles[f"{stem}_a"],
                    roles[f"{stem}_b"],
                    roles.get("lokr_t2") if stem == "lokr_w2" else None,
                )
            )
    pairs = [part for part in parts if isinstance(part, Pair)]
    first, second = parts
    valid = (
        all(pair.valid for pair in pairs)
        and len(first.shape) == 2
        and len(second.shape) in (2, 4)
        and 0 not in (*first.shape, *second.shape)
    )
    if not valid:
        raise _mismatch(path, module, *(roles[name] for name in sorted(roles) if name.startswith("lokr_")))
    # LyCORIS does not scale a product of two whole matrices; PEFT does, by its configuration.
    rank = pairs[-1].rank if pairs else None
    return Kronecker(first, second, _factor(path, module, roles, alphas, rank))


def _channels(
    path: Path, module: Module, bias: Module, tensor: F32, alphas: Alphas
) -> list[tuple[Module, WeightChange]]:
    """PEFT's (IA)^3: factors [O, 1] or [1, I] of linear layers, [1, O, 1, 1] or [1, I, 1, 1] of convolutions."""
    if tensor.ndim == 2:
        on_input = tensor.shape[0] == 1 and (tensor.shape[1] != 1 or alphas.feedforward(module))
    else:
        on_input = alphas.feedforward(module)
    change = _scaling(path, module, tensor - np.float32(1), on_input)
    if on_input:
        return [(module, change)]
    # Factors of the outputs scale the bias too, if the layer has one.
    return [(module, change), (replace(bias, optional=True), Scaling(change.factors, on_input=False))]


def _scaling(path: Path, module: Module, tensor: F32, on_input: bool) -> Scaling:
    if tensor.size == 0 or tensor.size != max(tensor.shape, default=0):
        raise RequestError(
            f"{path}: {module} has (IA)^3 factors of the shape {list(tensor.shape)}, expected one axis"
        )
    return Scaling(tensor.reshape(-1), on_input)


def _decomposed(path: Path, module: Module, inner: WeightChange, roles: Roles) -> WeightChange:
    # PEFT's are of the outputs: [O], or [1, O, 1, 1]. LyCORIS's are [1, I, ...] or [O, 1, ...].
    of_outputs = roles.get("output_norms")
    norms = roles.get("magnitude", of_outputs)
    if norms is None:
        return inner
    shape = norms.shape
    if norms.size == 0 or norms.size != max(shape, default=0) or len(inner.shape) < 2:
        raise RequestError(
            f"{path}: the DoRA norms of {module} have the shape {list(shape)}, expected one axis"
        )
    on_input = of_outputs is None and len(shape) > 1 and shape[0] == 1 and inner.shape[0] != 1
    return Decomposed(inner, norms.reshape(-1), on_input)


def _factor(path: Path, module: Module, roles: Roles, alphas: Alphas, rank: int | None) -> float:
    """Multiplier of a change: alpha / rank.

    Args:
        rank: None if the tensors have none.
    """
    alpha = roles.get("alpha")
    if alpha is None:
        return alphas.factor(module, rank)
    if alpha.size != 1:
        raise RequestError(
            f"{path}: the alpha of {module} has the shape {list(alpha.shape)}, expected a number"
        )
    return 1.0 if rank is None else float(alpha.reshape(())) / rank


def _require(path: Path, module: Module, roles: Roles, needed: set[Role], optional: set[Role]) -> None:
    for role in sorted(needed):
        if role not in roles:
            raise RequestError(f"{path} lacks the {role} factor of {module}: it is damaged, get it again")
    extra = sorted(set(roles) - needed - optional - _COMMON)
    if extra:
        raise RequestError(
            f"{path} has tensors of several kinds for {module} ({', '.join(extra)}): it is damaged, get it again"
        )


def _mismatch(path: Path, module: Module, *factors: F32 | None) -> RequestError:
    shapes = " and ".join(str(list(factor.shape)) for factor in factors if factor is not None)
    return RequestError(f"{path}: {module} has factors of the shapes {shapes}, which do not match")
