"""Adapters of PEFT: one from its folder put into a model that it fits, and where one can be put.

Which base model an adapter was trained on is kept in the place that PEFT's configuration has for
what is known of it, `auto_mapping`, and compared where the adapter is opened.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from layerif.core.files import brief, check_patterns, read_json
from layerif.core.files.tensors import bytes_of
from layerif.core.progress import note
from layerif.errors import InputError, LayerifError, MissingDependencyError
from layerif.model.folders import ADAPTER_CONFIG, check_adapter
from layerif.model.layers import DecoderLayers, Projection

DEFAULT = "default"
BASE_HASH = "base_model_sha256"
# The kinds that are opened, and the module that makes a kind known to PEFT where it is none of
# PEFT's own: named and not imported, since it is built on this room.
KINDS = {"LORA": None, "LORA_MOE": "layerif.adapters"}


def adapter_folder(folder: Path, name: str = DEFAULT) -> Path:
    """Where the adapter of a name is: PEFT writes `default` into the folder, others beneath it.

    Raises:
        InputError: there is none; says what there is.
    """
    root = folder.expanduser()
    place = root if name == DEFAULT else root / name
    if not (place / ADAPTER_CONFIG).is_file():
        found = sorted(path.parent.name for path in root.glob(f"*/{ADAPTER_CONFIG}"))
        if (root / ADAPTER_CONFIG).is_file():
            found.insert(0, DEFAULT)
        raise InputError(
            f"no adapter {name!r} in {folder}: {place / ADAPTER_CONFIG} does not exist; a folder "
            "written by save_pretrained of a PEFT model is expected; adapters in it: "
            f"{', '.join(found) or 'none'}"
        )
    return place


def adapter_kind(place: Path) -> str:
    """The kind of the adapter in a folder, one of `KINDS`.

    Raises:
        InputError: its configuration cannot be read, or it is of another kind.
    """
    path = place / ADAPTER_CONFIG
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


def base_record(model: Any) -> dict[str, str]:
    """What an adapter's configuration keeps of the model, of transformers and without adapters."""
    known = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
    digest = base_hash(model)
    return known if digest is None else {**known, BASE_HASH: digest}


def base_hash(model: Any) -> str | None:
    """SHA-256 of a model's weights, rounded to bfloat16: the same in float32, float64 and bfloat16.

    None in float16, whose rounding and range are different.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if weight.dtype == torch.float16:
            return None
        plain = weight.detach()
        if plain.is_floating_point():
            plain = plain.to(torch.bfloat16)
        digest.update(f"{name} {tuple(plain.shape)}".encode())
        digest.update(bytes_of(plain))
    return digest.hexdigest()


def _compare_base(
    config: Any, model: Any, place: Path, on_other_base: Callable[[str], None]
) -> None:
    """Tell where an adapter was trained on other weights; by their name where no hash is kept."""
    kept = config.auto_mapping
    recorded = kept.get(BASE_HASH) if isinstance(kept, dict) else None
    stated = str(config.base_model_name_or_path or "")
    here = str(model.config.name_or_path or "")
    if isinstance(recorded, str):
        if base_hash(model) not in (None, recorded):
            on_other_base(
                f"the adapter in {place} was trained on other weights than those of {here} "
                f"({stated} then)"
            )
    elif stated and here and Path(stated).name.lower() != Path(here).name.lower():
        note(f"the adapter in {place} names {stated} as its base model")


def with_adapter(
    model: Any,
    folder: Path,
    name: str = DEFAULT,
    *,
    on_other_base: Callable[[str], None] = note,
) -> Any:
    """The model as a PEFT model with one LoRA of a folder, or mixture of LoRAs, active.

    As PEFT opens it: what some ways of initialising (PiSSA, OLoRA, LoftQ) take out of the model's
    weights is taken out here too.

    Args:
        model: of transformers, changed in place; a skeleton will do to see whether it fits.
        folder: as PEFT's save_pretrained writes it.
        name: of the adapter.
        on_other_base: called with a sentence, before the model is changed, where the adapter was
            trained on other weights.

    Raises:
        InputError: the folder holds no such adapter, it is of another kind, or it is for a model of
            another shape.
        MissingDependencyError: a package is missing that its initialisation needs.
    """
    from peft import PeftConfig, PeftModel

    place = adapter_folder(folder, name)
    kind = adapter_kind(place)
    check_adapter(place)
    skeleton = any(weight.is_meta for weight in model.parameters())
    misfit = f"the adapter in {place} does not fit {model.config.name_or_path}"
    try:
        if (provider := KINDS[kind]) is not None:
            import_module(provider)
        config = PeftConfig.from_pretrained(str(place))
        _check_config(config, model, place)
        if skeleton:
            config.init_lora_weights = False  # most ways need the weights
        else:
            _compare_base(config, model, place, on_other_base)
        with _same_draws(model), _noted(place, silent=skeleton):
            wrapped = PeftModel(model, config, name)
            found = wrapped.load_adapter(str(place), name)
    except LayerifError:
        raise
    except Exception as error:  # whatever a file of others brings PEFT to
        lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
        cause = " ".join(lines[:2])[:300] or type(error).__name__
        if isinstance(error, ImportError) or "please install" in cause:
            raise MissingDependencyError(f"the adapter in {place} needs more: {cause}") from None
        lacking = "it lacks " if isinstance(error, KeyError) else ""
        raise InputError(f"{misfit}: {lacking}{cause}") from None
    for what, keys in (
        ("lacks {} weights that the model has a place for", found.missing_keys),
        ("has {} weights that the model has no place for", found.unexpected_keys),
    ):
        if keys:
            raise InputError(f"{misfit}: it {what.format(len(keys))}, such as {min(keys)}")
    return wrapped.eval()


def _check_config(config: Any, model: Any, place: Path) -> None:
    """Refuse what PEFT cannot open again, or would never finish opening."""
    if str(getattr(config, "init_lora_weights", "")).startswith("corda"):
        raise InputError(
            f"the adapter in {place} is initialised by {config.init_lora_weights}, from statistics "
            "that its folder does not hold, so PEFT cannot open it either; save it as a plain LoRA "
            "(path_initial_model_for_weight_conversion of PEFT's save_pretrained)"
        )
    names = [name for name, _ in model.named_modules()]

    def given(field: str, form: str = "{}") -> list[str]:
        """The expressions of a field, as PEFT puts them together."""
        values = getattr(config, field, None) or []
        return [form.format(e) for e in ([values] if isinstance(values, str) else values)]

    targets = (getattr(config, f, None) for f in ("target_modules", "exclude_modules"))
    patterns = [
        # One expression, and not a list of names or PEFT's own word.
        *(t for t in targets if isinstance(t, str) and t not in ("", "all-linear")),
        *given("rank_pattern", r"(.*\.)?({})$"),
        *given("alpha_pattern", r"(.*\.)?({})$"),
        *given("modules_to_save", r"(^|.*\.){}($|\..*)"),
        *given("layers_pattern", r"(?:^|.*?\.){}\.\d+\..*"),
    ]
    check_patterns(patterns, names, f"the adapter in {place}")


@contextmanager
def _same_draws(model: Any) -> Iterator[None]:
    """PiSSA by a random method takes the same out of a model each time; all else is as before."""
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(0)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(0)
        yield


@contextmanager
def _noted(place: Path, *, silent: bool) -> Iterator[None]:
    """PEFT's warnings as notes, but for those of keys, which are checked here, and of names."""
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        yield
    messages = (
        " ".join(str(warning.message).split())
        for warning in given
        if not (silent or issubclass(warning.category, DeprecationWarning | FutureWarning))
    )
    for message in dict.fromkeys(messages):
        if "missing adapter keys" not in message:
            note(f"PEFT, of the adapter in {place}: {message}")


def adaptable(model: Any, layers: DecoderLayers) -> list[Projection]:
    """The projections that PEFT can put a LoRA beside.

    Not those of experts in one parameter; nor, in such models, those whose names PEFT takes for
    names that experts had before (`gate_proj` of a shared expert); nor what it refuses in some
    state-space models (`out_proj`).

    Args:
        model: of transformers, without adapters; a skeleton will do.
        layers: its decoder layers.
    """
    ends = {p.name.rpartition(".")[2] for p in layers.linear}
    taken = {end for end in ends if not _reaches(model, end)}
    return [p for p in layers.linear if p.name.rpartition(".")[2] not in taken]


def note_left_out(layers: DecoderLayers, adapted: Sequence[Projection]) -> None:
    """Say at which kinds of projections PEFT puts no LoRA, where there are such.

    Args:
        adapted: those that can have one.
    """
    known = {projection.key for projection in adapted}
    left = [p for p in layers.projections if p.key not in known]
    if left:
        names = {p.name if p.fused is None else p.name.rpartition(".")[0] for p in left}
        note(
            f"PEFT puts no LoRA at {len(left)} of {len(layers.projections)} projections: "
            f"{', '.join(sorted(names))}"
        )


def _reaches(model: Any, end: str) -> bool:
    """Whether PEFT would put a LoRA at the modules of a name, and not elsewhere or nowhere."""
    from peft import LoraConfig
    from peft.tuners import tuners_utils
    from peft.utils import transformers_weight_conversion as conversion

    config = LoraConfig(target_modules=[end])
    try:
        tuners_utils._check_lora_target_modules_mamba(config, model, end)
        conversion.convert_peft_config_for_transformers(config, model, None)
    except ValueError:
        return False
    return end in (config.target_modules or ())


def check_rank(projections: Sequence[Projection], ranks: int | Sequence[int]) -> None:
    """Refuse a LoRA of a larger rank than the matrix that it changes can have.

    Args:
        projections: that the LoRA is put beside.
        ranks: of every decoder layer, or one for all.

    Raises:
        InputError: names the projection, and the largest rank that it can have.
    """
    for projection in projections:
        rank = ranks if isinstance(ranks, int) else ranks[projection.layer]
        limit = min(projection.out_features, projection.in_features)
        if rank > limit:
            raise InputError(
                f"the rank {rank} is above the smaller side of {projection.key} "
                f"({projection.out_features} x {projection.in_features}): a LoRA beside it can "
                f"have a rank of at most {limit}"
            )


def adapted_modules(model: Any) -> list[Any]:
    """The modules that PEFT has put adapters beside."""
    return [module for module in model.modules() if hasattr(module, "get_base_layer")]


def refuse_adapted(model: Any, why: str) -> None:
    """Refuse a model that has adapters already.

    Args:
        why: the end of the error: why they cannot be there, and what to do.

    Raises:
        InputError: it has.
    """
    if adapted_modules(model):
        raise InputError(f"the model has adapters already, {why}")


def active_adapters(model: Any) -> list[str]:
    """Kind and name of each adapter that is active at some module, merged or beside it."""
    kinds = getattr(model, "peft_config", {})
    names: dict[str, None] = {}
    for module in adapted_modules(model):
        beside = [] if module.disable_adapters else module.active_adapters
        names |= dict.fromkeys([*module.merged_adapters, *beside])
    return [f"{kinds[name].peft_type.value} {name}" for name in names if name in kinds]
