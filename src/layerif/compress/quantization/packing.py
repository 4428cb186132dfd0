"""Models written as packed integers, in the format of the library `compressed-tensors`.

transformers opens such a folder where that library is installed, and vLLM runs it. Each projection
is stored as `weight_packed` (codes less half their range, packed by row without gaps into 32-bit
words), `weight_scale` and `weight_shape`; the configuration has a group for each number of bits,
which names its modules.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerif.compress.quantization.grid import Coded
from layerif.compress.quantization.options import GridOptions
from layerif.core.files import write_text
from layerif.errors import InputError, MissingDependencyError
from layerif.model.layers import find_decoder_layers
from layerif.model.precision import stored_precision, word_of
from layerif.plans.maps.stored import WHOLE

COMPRESSED_TENSORS = "compressed-tensors"
PACKED = "pack-quantized"
# Codes that begin and end with whole words, whatever their bits.
WORD = 32


def check_packable(
    model: Any, asked: Mapping[str, int], grid: GridOptions, embeddings: int | None
) -> None:
    """Refuse what the format cannot say, or transformers cannot open, before any work.

    Args:
        model: whole, or a skeleton.
        asked: bits of each projection, by its canonical name.

    Raises:
        InputError: zero points, rounded embeddings, a projection that is no `nn.Linear` or whose
            row is no multiple of the group, or scales that the model's precision does not hold.
        MissingDependencyError: the library is not installed.
    """
    _library()
    why = None
    if not grid.symmetric:
        why = (
            "transformers cannot open zero points that are packed, so a symmetric grid is needed; "
            "pass symmetric=True"
        )
    elif embeddings is not None:
        why = "it holds embeddings and a head as they are; leave embeddings out"
    elif all(bits == WHOLE for bits in asked.values()):
        why = "no projection has less than 16 bits"
    precision = stored_precision(model)
    if precision.itemsize == 2 and word_of(precision) != grid.scales:
        why = why or (
            f"the model is saved in {word_of(precision)}, in which scales of {grid.scales} are not "
            f"exact; pass scales={word_of(precision)!r}"
        )
    for projection in find_decoder_layers(model).projections:
        if why is not None or asked[projection.key] == WHOLE:
            continue
        if type(projection.module) is not nn.Linear:
            why = (
                f"{projection.key} is not a linear map of its own (an expert that shares a "
                "parameter, or a transposed map); leave it at 16 bits"
            )
        elif projection.in_features % (multiple := grid.group_size or WORD):
            why = (
                f"{projection.key} has {projection.in_features} inputs, not a multiple of "
                f"{multiple}; choose another group_size, or leave it at 16 bits"
            )
    if why is not None:
        raise InputError(f"the model cannot be written as {COMPRESSED_TENSORS}: {why}")


def save_packed(model: Any, coded: Mapping[str, Coded], grid: GridOptions, folder: Path) -> None:
    """Write configuration and weights, with packed integers in place of those of projections.

    Args:
        model: rounded; what is not packed is saved as it is.
        coded: the integers of each projection of less than 16 bits, by its canonical name.
        grid: how weights became integers.
    """
    state = dict(model.state_dict())
    paths = {id(module): path for path, module in model.named_modules()}
    by_bits: dict[int, list[str]] = defaultdict(list)
    ignored = [paths[id(head)]] if (head := model.get_output_embeddings()) is not None else []
    for projection in find_decoder_layers(model).projections:
        path = paths[id(projection.module)]
        if projection.key not in coded:
            ignored.append(path)
            continue
        own = coded[projection.key]
        by_bits[own.bits].append(path)
        del state[f"{path}.weight"]
        state |= {f"{path}.{name}": tensor for name, tensor in packed(own).items()}
    model.save_pretrained(folder, state_dict=state)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = _configuration(by_bits, ignored, grid)
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def packed(coded: Coded) -> dict[str, torch.Tensor]:
    """What is stored of one projection on a symmetric grid, by name."""
    helpers = _library().compressors.pack_quantized
    centred = (coded.codes.to(torch.int16) - 2 ** (coded.bits - 1)).to(torch.int8)
    return {
        "weight_packed": helpers.pack_to_int32(centred, coded.bits),
        "weight_scale": coded.scales,
        "weight_shape": torch.tensor(coded.codes.shape),
    }


def unpacked(stored: Mapping[str, torch.Tensor], bits: int) -> torch.Tensor:
    """(out, in) int16 codes less half their range, of what is stored of one projection."""
    helpers = _library().compressors.pack_quantized
    shape = torch.Size(stored["weight_shape"].tolist())
    codes: torch.Tensor = helpers.unpack_from_int32(stored["weight_packed"], bits, shape)
    return codes.to(torch.int16)


def _configuration(
    by_bits: Mapping[int, Sequence[str]], ignored: Sequence[str], grid: GridOptions
) -> dict[str, Any]:
    library = _library().quantization
    groups = {
        f"group_{bits}": library.QuantizationScheme(
            targets=list(paths),
            weights=library.QuantizationArgs(
                num_bits=bits,
                type="int",
                symmetric=True,
                strategy="group" if grid.group_size else "channel",
                group_size=grid.group_size or None,
            ),
            format=PACKED,
        )
        for bits, paths in sorted(by_bits.items())
    }
    whole = library.QuantizationConfig(
        config_groups=groups,
        ignore=list(ignored),
        format=PACKED,
        quantization_status="compressed",
    )
    return {"quant_method": COMPRESSED_TENSORS, **json.loads(whole.model_dump_json())}


def _library() -> Any:
    try:
        import compressed_tensors
        import compressed_tensors.compressors.pack_quantized
        import compressed_tensors.quantization
    except ImportError:
        raise MissingDependencyError(
            "writing and counting packed integers needs the library compressed-tensors: "
            "pip install 'layerif[quant]'"
        ) from None
    return compressed_tensors
