"""GGUF files as ordinary Hugging Face models.

transformers reads a GGUF file by dequantising it, but the model it returns still carries a
quantization config and refuses `save_pretrained`, and reading takes many seconds. Here the file is
converted once into a plain float32 folder under the user's cache, named by the file's hash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from layerif.artifacts import CONVERTED, Fingerprint
from layerif.core.checkpoint import resumable
from layerif.core.files import cache_folder, file_hash, new_folder, require_disk
from layerif.core.progress import note
from layerif.errors import InputError
from layerif.model.causes import reading
from layerif.model.folders import CONFIG, check_folder, weights_of
from layerif.model.gguf_header import StoredTensor, stored_tensors
from layerif.model.quiet import quiet_transformers

# Part of the folder's name: raise it when the conversion changes what it writes.
CONVERSION = "v2"
# Weights of a model for each one in its file: one, but for what an architecture computes itself.
MOST_MORE = 1.5


def folder_of(name: str, digest: str) -> Path:
    """Where the plain model made from a GGUF file of that name and SHA-256 is kept."""
    return cache_folder() / "gguf" / f"{Path(name).stem}-{digest[:16]}-{CONVERSION}"


def converted(file: Path) -> Path:
    """The folder of a plain Hugging Face model made from a GGUF file, converting it the first time.

    A folder that is damaged is made again.

    Raises:
        InputError: the file is not a GGUF file or damaged, or transformers cannot read its
            architecture.
    """
    tensors = stored_tensors(file)
    digest = file_hash(file)
    folder = folder_of(file.name, digest)
    if not is_converted(folder):
        wanted = Fingerprint(model=digest, data="", options={"conversion": CONVERSION})
        # One process converts, and others that want the same wait for it.
        with resumable(folder, wanted, restart=True, wait=True):
            if not is_converted(folder):
                note(f"converting {file.name} to a plain model, once; this takes a while ...")
                size = 4 * sum(tensor.numel for tensor in tensors)
                what = f"{file.name} as a float32 model"
                remedy = "set LAYERIF_CACHE to a folder on another disk"
                require_disk(folder, size, what, remedy=remedy)
                with quiet_transformers(), new_folder(folder, CONVERTED) as part:
                    _convert(file, digest, tensors, part)
    return folder


def is_converted(folder: Path) -> bool:
    """Whether a folder holds a model that was converted, of which nothing is damaged."""
    if not (folder / CONFIG).is_file():
        return False
    try:
        check_folder(folder)
        weights_of(folder)
    except InputError as error:
        note(f"{error}; it is converted again")
        return False
    return True


def _convert(file: Path, digest: str, tensors: Sequence[StoredTensor], folder: Path) -> None:
    place = str(file.parent)
    with reading(f"the GGUF file {file}"):
        config = AutoConfig.from_pretrained(place, gguf_file=file.name)
        with torch.device("meta"):
            wanted = AutoModelForCausalLM.from_config(config).num_parameters()
        stored = sum(tensor.numel for tensor in tensors)
        if wanted > MOST_MORE * stored:
            raise InputError(
                f"the GGUF file {file} holds {stored:,} weights, and its header describes a model "
                f"of {wanted:,}: it is damaged; fetch it again"
            )
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file.name)
        read, found = AutoModelForCausalLM.from_pretrained(
            place, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
        )
        settings = read.config.to_dict()
        settings.pop("quantization_config", None)
        origin = {"file": file.name, "sha256": digest, "weights": _by_share(tensors)}
        settings["gguf_origin"] = origin
        plain = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**settings), dtype=torch.float32
        )
        plain.load_state_dict(read.state_dict())
    if lacking := sorted(found["missing_keys"]):
        raise InputError(f"the GGUF file {file} lacks weights of its model, such as {lacking[0]}")
    for name, weight in plain.named_parameters():
        if not weight.isfinite().all():
            raise InputError(f"{name} is not finite in {file}: it is damaged; fetch it again")
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _by_share(tensors: Sequence[StoredTensor]) -> str:
    """The quantisations of the layers' matrices: `Q4_1`, or `63 % Q5_0, 37 % Q4_K`."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            sizes[tensor.quantisation] += tensor.numel
    if len(sizes) < 2:
        return next(iter(sizes), "unknown")
    shares = [(name, round(100 * size / sizes.total())) for name, size in sizes.most_common()]
    return ", ".join(f"{share or 'under 1'} % {name}" for name, share in shares)


def caveat(weights: str) -> str:
    """What a reader of figures must know of a model whose weights were stored like this."""
    if "%" in weights:
        return f"dequantised from a GGUF file with layers of {weights}"
    return f"dequantised from a {weights} GGUF file"
