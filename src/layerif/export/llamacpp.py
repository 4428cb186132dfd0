"""llama.cpp: a file of tensor types for `llama-quantize`, or the layers that it is to prune.

K-quants need rows of a multiple of 256 weights, other types of 32. The engine would fall back to
other types without asking; here the type that fits is chosen, so the size of the file is known.
"""

from __future__ import annotations

import re
from typing import Any

from gguf import GGML_QUANT_SIZES, MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType
from gguf import get_tensor_name_map as names_of_tensors

from layerif.errors import InputError
from layerif.export.base import Export, Request, Written, said
from layerif.export.mergekit import refuse_moved
from layerif.export.options import GgufOptions
from layerif.plans.maps.stored import WHOLE

# Types for a level, the best first: with rows of a multiple of 256, of 32, and others.
TYPES = {
    2: ("q2_K", "q4_0", "f16"),
    3: ("q3_K", "q4_0", "f16"),
    4: ("q4_K", "q4_0", "f16"),
    5: ("q5_K", "q5_0", "f16"),
    6: ("q6_K", "q8_0", "f16"),
    7: ("q8_0", "q8_0", "f16"),
    8: ("q8_0", "q8_0", "f16"),
    WHOLE: ("f16", "f16", "f16"),
}
# What a level is called on its way to one of more bits.
EXACT = {"q2_K": 2, "q3_K": 3, "q4_K": 4, "q4_0": 4, "q5_K": 5, "q5_0": 5, "q6_K": 6, "q8_0": 8}
# Kinds of transformers whose architecture has another name in GGUF files.
OTHERS = {"mistral": "llama", "gpt_neox": "gptneox"}


def bits(request: Request) -> Written:
    """A line for every projection, matched as a whole name.

    The command's own type is q8_0: the engine reads the file only where that type is quantised, and
    nothing that is quantised is left to it.
    """
    chosen = request.options
    names = tensor_names(request.model)
    types: dict[str, str] = {}
    lines, higher = [], []
    for t in request.targets:
        name = names.get(f"{t.name}.weight")
        if name is None:
            raise InputError(
                f"{t.key} has no tensor of its own in a GGUF file; llama.cpp joins such weights, "
                "and takes one type for all of them"
            )
        known = types.setdefault(name, ggml_type(t.bits, t.in_features))
        if known != ggml_type(t.bits, t.in_features):
            raise InputError(f"{name} holds several projections, to which the plan gives two types")
        if EXACT.get(known, WHOLE) > t.bits:
            higher.append((t.key, t.bits, known))
    for name, kind in types.items():
        lines.append(f"^{re.escape(name).replace(chr(92) + '_', '_')}$={kind}")
    notes = []
    if higher:
        key, level, kind = higher[0]
        notes.append(
            f"llama.cpp has nothing as small for rows that 256 does not divide: {level} bits of "
            f"{key} become {kind}, as do {len(higher) - 1} others' (counted in the size)"
        )
    sizes = tensor_sizes(request.model, names, types, chosen.embeddings)
    usage = (
        f"llama-quantize --token-embedding-type {chosen.embeddings} --output-tensor-type "
        f"{chosen.embeddings} --tensor-type-file {{file}} {chosen.source} {chosen.target} q8_0"
    )
    return Written("\n".join(lines) + "\n", usage, tuple(notes), sum(sizes.values()), sizes)


def depth(request: Request) -> Written:
    """The command that prunes layers; the engine numbers the others again."""
    kept = set(request.plan.kept_layers())
    config = request.model.config.get_text_config(decoder=True)
    refuse_moved(config, sorted(kept), "llama.cpp")
    dropped = [str(i) for i in range(len(request.plan.allocation)) if i not in kept]
    if not dropped:
        raise InputError("the plan keeps every layer, so there is nothing to prune")
    chosen = request.options
    text = (
        f"llama-quantize --prune-layers {','.join(dropped)} {chosen.source} {chosen.target} f16\n"
    )
    return Written(text, "sh {file}")


def ggml_type(level: int, row: int) -> str:
    """The type for a level that rows of a length can have."""
    return TYPES[level][0 if row % 256 == 0 else 1 if row % 32 == 0 else 2]


def bytes_of_type(kind: str, numel: int) -> int:
    """What weights of a type take."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]
    return numel // block * size


def tensor_names(model: Any) -> dict[str, str]:
    """The name in a GGUF file of every parameter of a model, by its name here.

    Raises:
        InputError: llama.cpp does not have the architecture, as far as the package gguf knows.
    """
    config = model.config.get_text_config(decoder=True)
    kind = str(config.model_type).removesuffix("_text")
    wanted = _plain(OTHERS.get(kind, kind))
    found: list[MODEL_ARCH] = [a for a, n in MODEL_ARCH_NAMES.items() if _plain(n) == wanted]
    if not found:
        raise InputError(f"the package gguf knows no architecture {kind!r} of llama.cpp")
    known = names_of_tensors(found[0], int(config.num_hidden_layers))
    names = {}
    for name, _ in model.named_parameters():
        tensor = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if tensor is not None:
            names[name] = tensor
    return names


def _plain(name: str) -> str:
    return re.sub(r"[-_.]", "", name.lower())


def tensor_sizes(
    model: Any, names: dict[str, str], types: dict[str, str], embeddings: str
) -> dict[str, int]:
    """The bytes of each tensor in the file; vectors are in float32 there.

    Raises:
        InputError: a matrix outside the projections, whose type the engine would choose itself.
    """
    outer = {"token_embd.weight", "output.weight"}
    sizes = {}
    for name, parameter in model.named_parameters():
        tensor = names.get(name, name)
        kind = types.get(tensor, embeddings if tensor in outer else "f32")
        if parameter.ndim > 1 and kind == "f32":
            raise InputError(
                f"{name} is a matrix outside the projections, and llama.cpp chooses its type "
                f"itself; {said([tensor])} has none by the plan"
            )
        sizes[tensor] = bytes_of_type(kind, parameter.numel())
    return sizes


LLAMACPP = Export("llama.cpp", {"bits": bits, "depth": depth}, GgufOptions)
