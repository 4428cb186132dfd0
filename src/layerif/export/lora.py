"""A LoRA that means the same in every engine: one rank, one alpha, and no patterns.

PEFT scales each matrix's adapter by its own alpha / r, or alpha / sqrt(r). llama.cpp reads one
alpha for all and divides it by the rank of each tensor; vLLM and SGLang divide it by the one rank
of the configuration. With ranks that differ both are wrong, silently. Zero rows of A and columns of
B add nothing and make ranks equal; what is left of the scale is multiplied into B.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from layerif.artifacts.kinds import ADAPTER_FILES, CARD_FILE
from layerif.core.files import (
    Kind,
    check_target,
    new_folder,
    quoted,
    read_json,
    write_json,
    write_text,
)
from layerif.core.options import Options, takes
from layerif.errors import InputError
from layerif.export.base import said

if TYPE_CHECKING:
    import torch

CONFIG_FILE, WEIGHTS_FILE = ADAPTER_FILES
MARK = "layerif_export.json"
EXPORTED = Kind("layerif.export", MARK, (*ADAPTER_FILES, CARD_FILE))
_NAME = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>A|B|embedding_A|embedding_B)(?P<rest>.*)"
)


class LoraExportOptions(Options):
    """How the adapter is written."""

    title = "Export"

    pad: bool = True
    """Give all matrices one rank; without it they keep theirs, as PEFT and llama.cpp can read."""
    rank: Annotated[int | None, Field(ge=1)] = None
    """Their rank with padding, at least the largest; left out, the largest."""


@dataclass(frozen=True)
class ExportedLora:
    """What was written.

    Attributes:
        rank: of the configuration, and with padding of every matrix.
        lora_alpha: one number for all.
        ranks: of each module before.
        scales: alpha / r of each module before.
    """

    rank: int
    lora_alpha: float
    ranks: dict[str, int]
    scales: dict[str, float]


@takes(LoraExportOptions)
def export_lora(folder: Path, out: Path, *, options: LoraExportOptions) -> ExportedLora:
    """Write an adapter whose ranks and scales every engine reads alike.

    Raises:
        InputError: no plain LoRA of PEFT is in the folder; the rank is below the largest; `out`
            holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    check_target(out, EXPORTED)
    config = _config_of(folder)
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise InputError(f"no {WEIGHTS_FILE} in {folder}; save the adapter again as safetensors")
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    changed, weights, made = equalised(config, weights, options)
    with new_folder(out, EXPORTED) as part:
        save_file(weights, part / WEIGHTS_FILE, metadata={"format": "pt"})
        write_json(part / CONFIG_FILE, changed)
        write_json(
            part / MARK,
            {
                "format": "layerif.export/1",
                "rank": made.rank,
                "lora_alpha": made.lora_alpha,
                "ranks": made.ranks,
                "scales": made.scales,
            },
        )
        if (card := folder / CARD_FILE).is_file():
            write_text(part / CARD_FILE, card.read_text(encoding="utf-8"))
    return made


def _config_of(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(
            f"no adapter in {folder}: {CONFIG_FILE}, which save_pretrained of a PEFT model writes, "
            "does not exist"
        )
    config = read_json(path, "the configuration of an adapter")
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise InputError(
            f"the adapter in {folder} is of the kind {quoted(kind)}; a plain LoRA is expected, the "
            "one kind whose weights llama.cpp and vLLM read"
        )
    if config.get("target_parameters"):
        raise InputError(
            f"the adapter in {folder} has a LoRA beside experts that share a parameter "
            "(target_parameters), whose ranks cannot be padded one by one"
        )
    return config


def equalised(
    config: Mapping[str, Any], weights: Mapping[str, torch.Tensor], options: LoraExportOptions
) -> tuple[dict[str, Any], dict[str, torch.Tensor], ExportedLora]:
    """A configuration without patterns, and weights that mean the same with it.

    Args:
        config: of PEFT's LoRA, as JSON.
        weights: (r, in) of each A and (out, r) of each B, by the names in PEFT's files.

    Raises:
        InputError: as `export_lora`.
    """
    ranks: dict[str, int] = {}
    for name, weight in weights.items():
        side = _NAME.fullmatch(name)
        if side is not None and side["side"].endswith("A"):
            if weight.ndim != 2:
                raise InputError(f"{name} has {weight.ndim} dimensions; a linear map is expected")
            ranks[side["module"]] = weight.shape[0]
    if not ranks:
        raise InputError("the adapter holds no matrices of a LoRA")
    largest = max(ranks.values())
    rank = options.rank or largest
    if rank < largest:
        big = said(module for module, own in ranks.items() if own > rank)
        raise InputError(f"rank={rank} is below the rank of {big}; use at least {largest}")
    scales = {module: _scale(config, module, own) for module, own in ranks.items()}
    ((common, _),) = Counter(scales.values()).most_common(1)
    alpha = common * rank
    out = {}
    for name, weight in weights.items():
        found = _NAME.fullmatch(name)
        if found is None:
            out[name] = weight.contiguous()
            continue
        module = found["module"]
        own = ranks[module]
        width = rank if options.pad else own
        # What an engine multiplies by: alpha over the rank that it finds.
        factor = scales[module] / (alpha / width)
        whole = weight
        if found["side"].endswith("B"):
            whole = weight if factor == 1 else (weight.double() * factor).to(weight.dtype)
        if options.pad and own < rank and weight.ndim == 2:
            axis = 0 if found["side"].endswith("A") else 1
            shape = list(weight.shape)
            shape[axis] = rank - own
            whole = _joined(whole, shape, axis)
        out[name] = whole.contiguous()
    patterns = {} if options.pad else _patterns(ranks, rank)
    changed = {
        **config,
        "r": rank,
        "lora_alpha": alpha if alpha != int(alpha) else int(alpha),
        "rank_pattern": patterns,
        "alpha_pattern": {},
        "use_rslora": False,
    }
    return changed, out, ExportedLora(rank, alpha, ranks, scales)


def _joined(weight: torch.Tensor, zeros: list[int], axis: int) -> torch.Tensor:
    import torch

    return torch.cat([weight, weight.new_zeros(zeros)], dim=axis)


def _patterns(ranks: Mapping[str, int], rank: int) -> dict[str, int]:
    return {f"^{re.escape(module)}": own for module, own in ranks.items() if own != rank}


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r of a module, or alpha / sqrt(r), as PEFT finds them."""
    from peft.utils.other import get_pattern_key

    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns, module), config.get("lora_alpha", 8))
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
