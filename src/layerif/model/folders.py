"""What a model's folder holds, checked before transformers reads it."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from layerif.core.files import brief, quoted, read_json
from layerif.errors import InputError
from layerif.model.causes import cause_of

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
# In the order that transformers looks for them.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# Files that a tokenizer's vocabulary may be in, and the small JSON files beside a model.
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "*.spm", "tekken.json")
SETTINGS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
# Tensors beside packed integers, which are no weights, whatever their precision.
SCALES = ".weight_scale"
LFS_POINTER = b"version https://git-lfs"
# A configuration beyond these is damaged; its modules would fill the memory before any weight.
MOST = {
    re.compile(r"(layers?|blocks?|depth)$"): 2_000,
    re.compile(r"(experts?|labels?)$"): 100_000,
}
# As safetensors calls them.
PRECISIONS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True)
class Weights:
    """The weights in a folder.

    Attributes:
        files: that hold them.
        size: bytes of all files.
        precision: that most weights are stored in; None where none is a plain floating number, or
            the files do not tell.
    """

    files: tuple[Path, ...]
    size: int
    precision: torch.dtype | None


def check_folder(folder: Path) -> None:
    """Refuse a folder that has no configuration of a model, or one that is damaged.

    Raises:
        InputError: says what the folder holds in its place.
    """
    config = folder / CONFIG
    if not config.is_file():
        raise InputError(_without_config(folder))
    refuse_pointer(config)
    settings = read_json(config, "the configuration of a model")
    if not isinstance(settings, dict):
        raise InputError(f"{config} is no JSON object; expected the configuration of a model")
    _check_counts(settings, config)


def _without_config(folder: Path) -> str:
    if (folder / ADAPTER_CONFIG).is_file():
        return (
            f"{folder} holds a PEFT adapter and no model: name its base as the model, and pass "
            f"adapter='{folder}'"
        )
    if files := sorted(path.name for path in folder.glob("*.gguf")):
        return f"{folder} holds no {CONFIG}, but GGUF files: name one of them, such as {files[0]}"
    return (
        f"{folder} holds no model: it has no {CONFIG}; expected a folder written by save_pretrained"
    )


def _check_counts(settings: dict[str, Any], config: Path) -> None:
    for key, value in settings.items():
        if isinstance(value, dict):
            _check_counts(value, config)
        elif isinstance(value, int | float):
            for pattern, most in MOST.items():
                if pattern.search(key) and not abs(value) <= most:
                    raise InputError(
                        f"{key} is {value:.3g} in {config}, more than any model has; the "
                        f"configuration is damaged (at most {most:,} are expected)"
                    )


def weights_of(folder: Path) -> Weights:
    """The files that transformers would read weights from, each checked to be whole.

    Raises:
        InputError: there are none, one is missing, damaged, closed to this user, an unfetched
            pointer of Git LFS or outside the folder, or it holds more than tensors.
    """
    for name in WEIGHTS:
        whole, index = folder / name, folder / f"{name}.index.json"
        if whole.is_file() or index.is_file():
            files = (whole,) if whole.is_file() else _indexed(index)
            sizes: Counter[torch.dtype] = Counter()
            for path in files:
                sizes += _read(path)
            size = sum(path.stat().st_size for path in files)
            return Weights(files, size, max(sizes, key=sizes.__getitem__, default=None))
    if (folder / ADAPTER_CONFIG).is_file():
        raise InputError(_without_config(folder))
    raise InputError(
        f"no weights are in {folder}: {' or '.join(WEIGHTS)}, whole or in parts with an index, is "
        "expected beside the configuration"
    )


def _indexed(index: Path) -> tuple[Path, ...]:
    """The parts of a model, by their index."""
    refuse_pointer(index)
    stated = read_json(index, "the index of a model's weights")
    names = stated.get("weight_map") if isinstance(stated, dict) else None
    if not isinstance(names, dict) or not names or "metadata" not in stated:
        raise InputError(
            f"{index} lacks its weight_map or metadata; expected an index that save_pretrained "
            "wrote"
        )
    parts = []
    kind = Path(index.name.removesuffix(".index.json")).suffix
    for name in dict.fromkeys(map(str, names.values())):
        if Path(name).name != name or "\0" in name or not name.endswith(kind):
            raise InputError(f"{index} names {quoted(name)}, which is not a {kind} file beside it")
        if not (index.parent / name).is_file():
            raise InputError(f"{brief(name)} is missing in {index.parent}; {index.name} names it")
        parts.append(index.parent / name)
    return tuple(parts)


def check_adapter(place: Path) -> None:
    """Refuse a folder of PEFT's whose weights are missing, damaged, or hold more than tensors.

    Raises:
        InputError: names the file.
    """
    for name in ADAPTER_WEIGHTS:
        if (place / name).is_file():
            _read(place / name)
            return
    raise InputError(f"no weights are in {place}: {' or '.join(ADAPTER_WEIGHTS)} is expected")


def _read(path: Path) -> Counter[torch.dtype]:
    """How many weights of each precision a file holds, which is checked to be whole."""
    refuse_pointer(path)
    return _read_header(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_header(path: Path) -> Counter[torch.dtype]:
    """The same of a safetensors file, by its header alone, which tells if the file is whole."""
    sizes: Counter[torch.dtype] = Counter()
    try:
        with safe_open(path, framework="pt") as file:
            for key in list(file.keys()):
                tensor = file.get_slice(key)
                if key.endswith(SCALES):
                    continue
                if (precision := PRECISIONS.get(tensor.get_dtype())) is not None:
                    sizes[precision] += torch.Size(tensor.get_shape()).numel()
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is damaged or not whole ({cause_of(error)}); fetch or save the model again"
        ) from None
    return sizes


def _read_pickle(path: Path) -> Counter[torch.dtype]:
    """The same of a file of torch.save, without its numbers and without running what is in it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:
        # An unpickler meets damage as any kind of error.
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path} holds {code[1]}, and not tensors alone; it could run code of its own, so "
                "it is not opened: have the model saved as safetensors"
            ) from None
        # Its advice is to run the code in the file.
        said = "not a pickle of tensors" if isinstance(error, UnpicklingError) else cause_of(error)
        raise InputError(
            f"{path} is damaged, or not a file of tensors that torch.save wrote ({said})"
        ) from None
    tensors = list(state.values()) if isinstance(state, dict) else []
    if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise InputError(f"{path} is not a dictionary of tensors, as the weights of a model are")
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        if tensor.dtype in PRECISIONS.values():
            sizes[tensor.dtype] += tensor.numel()
    return sizes


def blame(folder: Path) -> None:
    """Once a model's folder could not be read: refuse the first of its small files that is damaged.

    Raises:
        InputError: names it.
    """
    for name in SETTINGS:
        path = folder / name
        if path.is_file():
            refuse_pointer(path)
            if not isinstance(read_json(path, "an object that save_pretrained writes"), dict):
                raise InputError(f"{path} is not a JSON object, as save_pretrained writes")


def vocabularies(folder: Path) -> list[Path]:
    """The files that a tokenizer's vocabulary may be in."""
    return [path for pattern in VOCABULARIES for path in sorted(folder.glob(pattern))]


def refuse_pointer(path: Path) -> None:
    """Refuse what Git LFS leaves in the place of a file that is not fetched, and closed files.

    Raises:
        InputError: it is one, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if pointer:
        raise InputError(
            f"{path} is a pointer of Git LFS and not the file itself; fetch it with `git lfs pull`"
        )
