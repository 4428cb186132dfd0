"""A PEFT adapter from its folder, put into a model that it fits."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from layerif.errors import InputError

DEFAULT = "default"
CONFIG_FILE = "adapter_config.json"


def adapter_folder(folder: Path, name: str = DEFAULT) -> Path:
    """Where the adapter of a name lies: PEFT writes `default` into the folder, others beneath it.

    Raises:
        InputError: there is none; says what there is.
    """
    place = folder.expanduser() if name == DEFAULT else folder.expanduser() / name
    if not (place / CONFIG_FILE).is_file():
        root = folder.expanduser()
        found = sorted(path.parent.name for path in root.glob(f"*/{CONFIG_FILE}"))
        if (root / CONFIG_FILE).is_file():
            found.insert(0, DEFAULT)
        raise InputError(
            f"no adapter {name!r} in {folder}: {place / CONFIG_FILE} does not exist; a folder "
            "written by save_pretrained of a PEFT model is expected; adapters in it: "
            f"{', '.join(found) or 'none'}"
        )
    return place


def with_adapter(model: Any, folder: Path, name: str = DEFAULT) -> Any:
    """The model as a PEFT model with one LoRA of a folder at work.

    Args:
        model: of transformers, changed in place; a skeleton will do to see whether it fits.
        folder: as PEFT's save_pretrained writes it.
        name: of the adapter.

    Raises:
        InputError: the folder holds no such adapter, it is no LoRA, or it is for a model of another
            shape.
    """
    from peft import PeftConfig, PeftModel, PeftType

    place = adapter_folder(folder, name)
    try:
        config = PeftConfig.from_pretrained(str(place))
        if config.peft_type != PeftType.LORA:
            raise InputError(
                f"the adapter in {place} is of the kind {config.peft_type.value}; only LoRA is "
                "supported"
            )
        # PEFT draws what it then reads from the file, and warns of what is checked here.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = PeftModel(model, config, name)
            found = wrapped.load_adapter(str(place), name)
    except (ValueError, RuntimeError, KeyError, TypeError, OSError, SafetensorError) as error:
        lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
        raise InputError(
            f"the adapter in {place} does not fit {model.config.name_or_path}: "
            f"{' '.join(lines[:2])[:300]}"
        ) from None
    for what, keys in (("lacks", found.missing_keys), ("has", found.unexpected_keys)):
        if keys:
            raise InputError(
                f"the adapter in {place} does not fit {model.config.name_or_path}: it {what} "
                f"{len(keys)} weights that the model has {'' if what == 'lacks' else 'not '}"
                f"a place for, {sorted(keys)[0]} among them"
            )
    return wrapped.eval()
