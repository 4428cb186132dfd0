"""A PEFT adapter from its folder, put into a model that it fits."""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from layerif.errors import InputError
from layerif.files import brief, read_json

DEFAULT = "default"
CONFIG_FILE = "adapter_config.json"
# The kinds that are opened, and the module that makes a kind known to PEFT where it is none of
# PEFT's own: named and not imported, since it is built on this room.
KINDS = {"LORA": None, "LORA_MOE": "layerif.moe"}


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


def adapter_kind(place: Path) -> str:
    """The kind of the adapter in a folder, one of `KINDS`.

    Raises:
        InputError: its configuration cannot be read, or it is of another kind.
    """
    path = place / CONFIG_FILE
    what = "the configuration that save_pretrained of a PEFT model writes"
    stated = read_json(path, what)
    if not isinstance(stated, dict) or "peft_type" not in stated:
        raise InputError(f"{path} does not say what kind of adapter it is of; expected {what}")
    kind = brief(stated["peft_type"])
    if kind not in KINDS:
        raise InputError(
            f"the adapter in {place} is of the kind {kind}; only {' and '.join(KINDS)} are "
            "supported"
        )
    return kind


def with_adapter(model: Any, folder: Path, name: str = DEFAULT) -> Any:
    """The model as a PEFT model with one LoRA of a folder, or mixture of LoRAs, at work.

    Args:
        model: of transformers, changed in place; a skeleton will do to see whether it fits.
        folder: as PEFT's save_pretrained writes it.
        name: of the adapter.

    Raises:
        InputError: the folder holds no such adapter, it is of another kind, or it is for a model of
            another shape.
    """
    from peft import PeftConfig, PeftModel

    place = adapter_folder(folder, name)
    kind = adapter_kind(place)
    try:
        if (provider := KINDS[kind]) is not None:
            import_module(provider)
        config = PeftConfig.from_pretrained(str(place))
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


def adapted_modules(model: Any) -> list[Any]:
    """The modules that PEFT has put adapters beside."""
    return [module for module in model.modules() if hasattr(module, "get_base_layer")]


def refuse_adapted(model: Any, right: str) -> None:
    """Refuse a model that has adapters already.

    Raises:
        InputError: it has; `right` goes on with why not, and what would be right.
    """
    if adapted_modules(model):
        raise InputError(f"the model has adapters already, {right}")


def adapters_at_work(model: Any) -> list[str]:
    """Kind and name of each adapter that is at work at some module, merged or beside it."""
    kinds = getattr(model, "peft_config", {})
    names: dict[str, None] = {}
    for module in adapted_modules(model):
        beside = [] if module.disable_adapters else module.active_adapters
        names |= dict.fromkeys([*module.merged_adapters, *beside])
    return [f"{kinds[name].peft_type.value} {name}" for name in names if name in kinds]
