"""Merge a LoRA that was trained on a pruned model, without losing the zeros, or on a cut one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerif.artifacts import DROPPED, PRUNED, DroppedLayers, Fingerprint, Manifest, hash_texts
from layerif.compress.depth.saving import save_dropped
from layerif.compress.pruning.saving import recounted, save_pruned
from layerif.compress.saving import saved_size
from layerif.core.checkpoint import check_out, tidy
from layerif.core.files import file_hash, require_disk
from layerif.core.progress import note
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers, unwrapped
from layerif.model.opening import open_model, open_skeleton
from layerif.model.peft_adapters import DEFAULT, adapted_modules, adapter_folder, with_adapter

# Of files that a merged model is made from.
HASHED = (".safetensors", ".bin", ".json")
# What these ways of initialising a LoRA leave in the model's weights has no zeros any more.
RESIDUAL = ("pissa", "olora", "corda", "loftq")


@torch.no_grad()
def merged(model: Any, zeros: Mapping[str, torch.Tensor] | None = None) -> Any:
    """The model with its LoRA added to the weights, but for those that are zero: they stay so.

    A LoRA's product is dense, so that a plain merge fills every zero of a pruned model in. Merged
    like this the model is no longer the one that was trained, base and LoRA side by side: what the
    LoRA did through the zeros is lost. Where the head shares its weight with the embeddings and the
    LoRA changes one of them, each gets a weight of its own.

    Args:
        model: a PEFT model with a LoRA active; not to be used afterwards.
        zeros: where each projection is zero, as `zeros_of` finds it before the adapter is opened;
            None to look in the model as it is.

    Returns:
        The model of transformers inside it, with no adapter left.

    Raises:
        InputError: the model has no adapter in it, one that is already merged, or one that cannot
            be expressed in weights.
    """
    if not adapted_modules(model) or not hasattr(model, "merge_and_unload"):
        raise InputError("the model has no adapter to merge; open it with adapter='folder'")
    _refuse_unmergeable(model, zeros_known=zeros is not None)
    # Where zeros lie is kept, and not read off again: the merge fills them in.
    masks = zeros_of(model) if zeros is None else zeros
    _untie(model)
    try:
        plain = model.merge_and_unload()
    except (RuntimeError, ValueError) as error:
        cause = " ".join(str(error).split())[:300]
        raise InputError(
            f"the adapter cannot be merged into weights ({cause}); keep it beside the model"
        ) from None
    if left := [path for path, m in plain.named_modules() if type(m).__module__.startswith("peft")]:
        raise InputError(
            f"the adapter cannot be merged into weights: PEFT leaves a part of it at {left[0]} "
            "(trainable tokens beside a LoRA on embeddings that are tied); keep it beside the model"
        )
    for projection in find_decoder_layers(plain).projections:
        projection.weight.masked_fill_(masks[projection.key], 0)
    return plain


def zeros_of(model: Any) -> dict[str, torch.Tensor]:
    """Where the weight of every projection is zero, (out_features, in_features) each."""
    return {p.key: p.weight == 0 for p in find_decoder_layers(model).projections}


def _refuse_unmergeable(model: Any, *, zeros_known: bool) -> None:
    """Refuse what PEFT would refuse half-way, and weights whose zeros are already lost."""
    wrapped = adapted_modules(model)
    if any(module.merged for module in wrapped):
        raise InputError(
            "an adapter is already merged into the model, and its zeros are gone; call "
            "`unmerge_adapter()` first"
        )
    names = {name for module in wrapped for name in module.active_adapters}
    for name in sorted(names):
        way = str(getattr(model.peft_config[name], "init_lora_weights", ""))
        if way.startswith(RESIDUAL) and not zeros_known:
            raise InputError(
                f"the adapter {name!r} is initialised by {way}, which changed the model's weights "
                "when it was opened, so its zeros are lost; call zeros_of(model) before the "
                "adapter is opened, and pass what it returns as zeros"
            )
    for path, module in model.named_modules():
        biased = {name for name, has in getattr(module, "lora_bias", {}).items() if has}
        if biased & names and module.get_base_layer().bias is None:
            raise InputError(
                f"the adapter has a bias (lora_bias) at {path.removeprefix('base_model.model.')}, "
                "and the projection there has none to merge it into; keep the adapter beside the "
                "model"
            )


def _untie(model: Any) -> None:
    """Give the head a weight of its own, where an adapter changes one that embeddings share."""
    base = unwrapped(model)
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    if None in ends or not any(hasattr(end, "get_base_layer") for end in ends):
        return
    embeddings, head = map(_innermost, ends)
    if head.weight is embeddings.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        for config in (base.config, base.config.get_text_config(decoder=True)):
            config.tie_word_embeddings = False
        note("the head and the embeddings, which were one weight, are saved as two")


def _innermost(module: Any) -> Any:
    """The module that PEFT has wrapped, once or more."""
    while (inner := getattr(module, "get_base_layer", None)) is not None:
        module = inner()
    return getattr(module, "original_module", module)


def merge_into(
    folder: Path,
    pruned: Path,
    adapter: Path,
    *,
    adapter_name: str = DEFAULT,
    force: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    **opening: Any,
) -> Manifest | DroppedLayers:
    """Merge a LoRA into the model of a pruned or cut folder, and write the outcome as another one.

    A folder that holds the outcome of the same files is reused.

    Args:
        folder: to write.
        pruned: model folder with a manifest, of zeros or of layers dropped.
        adapter: folder of a LoRA that PEFT has written.
        adapter_name: of the adapter, where its folder holds several.
        force: merge an adapter that was trained on another model, such as the dense one.
        overwrite: whether what `folder` holds may be replaced.
        trust_remote_code: as `open_model`.
        opening: as `open_model`.

    Returns:
        The new folder's manifest, with the zeros counted again where it is one of zeros.

    Raises:
        InputError: as `check_out`, `open_model`, `with_adapter` and `merged`; no manifest, or not
            this model's; or the adapter was trained on another model, and not `force`.
    """
    cut = DROPPED.is_finished(pruned)
    kind, of_folder = (DROPPED, DroppedLayers.of_folder) if cut else (PRUNED, Manifest.of_folder)
    check_out(folder, kind, overwrite=overwrite)
    manifest = of_folder(pruned)
    place = adapter_folder(adapter, adapter_name)
    wanted = Fingerprint(
        model=_files_hash(pruned),
        data=_files_hash(place),
        options={"merged": adapter_name, "dtype": opening.get("dtype")},
    )
    if kind.is_finished(folder):
        there = of_folder(folder)
        if there.fingerprint == wanted:
            note(f"{folder} already holds this result, which is reused")
            tidy(folder)
            return there
        if not overwrite:
            raise InputError(
                f"{folder} already holds another model; choose another folder, or pass "
                "overwrite=True"
            )
    skeleton = open_skeleton(pruned, trust_remote_code=trust_remote_code)
    with_adapter(skeleton, adapter, adapter_name)
    model, tokenizer = open_model(pruned, trust_remote_code=trust_remote_code, **opening)
    zeros = zeros_of(model)
    if isinstance(manifest, Manifest):
        said = {m.module: m.zeros for m in manifest.modules}
        if wrong := [key for key, mask in zeros.items() if said.get(key) != int(mask.sum())]:
            raise InputError(
                f"{pruned} is not what its manifest says: {wrong[0]} has "
                f"{int(zeros[wrong[0]].sum()):,} zeros; `layerif verify` lists all"
            )
    else:  # what is zero there is so by chance
        zeros = {key: torch.zeros_like(mask) for key, mask in zeros.items()}
    require_disk(folder, saved_size(model), "the merged model")
    plain = merged(
        with_adapter(
            model, adapter, adapter_name, on_other_base=note if force else _refuse_other_base
        ),
        zeros,
    )
    made = {"merged": str(adapter), "fingerprint": wanted}
    if isinstance(manifest, DroppedLayers):
        return save_dropped(plain, tokenizer, manifest.model_copy(update=made), folder)
    # What was measured of the pruned weights does not hold of the merged ones.
    manifest = recounted(manifest, plain, error=None)
    return save_pruned(plain, tokenizer, manifest.model_copy(update=made), folder)


def _files_hash(folder: Path) -> str:
    """Of the configurations and weights in a folder."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in HASHED and path.is_file()]
    return hash_texts([[path.name, file_hash(path)] for path in files])


def _refuse_other_base(other: str) -> None:
    raise InputError(f"{other}; to merge it all the same, pass force=True, and measure the outcome")
