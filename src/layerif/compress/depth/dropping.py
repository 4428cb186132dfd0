"""A model without the layers that a plan drops, as an ordinary model of its architecture."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers.initialization import no_init_weights

from layerif.artifacts import Plan
from layerif.compress.depth.configuration import cut_configuration
from layerif.compress.depth.skipping import Skipping, first_of, run_body, short_inputs
from layerif.compress.depth.units import find_units, refuse_dependent_layers
from layerif.data.batching import accepted
from layerif.errors import InputError
from layerif.model.layers import DecoderLayers, find_decoder_layers, refuse_quantised, unwrapped
from layerif.model.modes import evaluation_mode
from layerif.model.opening import describe, input_device
from layerif.model.peft_adapters import refuse_adapted
from layerif.model.precision import note_precision, stored_precision
from layerif.model.quiet import quiet_transformers

# Tokens that the model without its layers is compared on: past a sliding window, if that is short.
SHORT, LONGEST = 24, 1040
# Rounding that is allowed between the two, in steps of the precision.
ROUNDINGS = 16
# Words of an error of transformers that are repeated.
MOST_WORDS = 30
# What a layer knows of its own place.
_PLACE = re.compile(r"(^|_)(idx|index|layer_id|layer_number|layer_num)$|^training$")
_PLAIN = (int, float, str, bool, type(None), torch.dtype)


def drop_layers(model: Any, plan: Plan) -> Any:
    """A model of the layers that a plan keeps, renumbered, as its architecture itself makes it.

    Every setting that goes layer by layer is cut alike. Before it is returned, the model is
    compared with the whole one that passes over the dropped layers: what its layers are, and what
    they make of a short text.

    Args:
        model: a causal LM of transformers; stays as it is, and shares its weights with the result.
        plan: of kind `depth`, by layers.

    Returns:
        A model that `save_pretrained` writes and plain `from_pretrained` opens.

    Raises:
        InputError: the plan is of another model or kind, or drops sublayers, which no configuration
            can say; layers depend on one another; or the architecture has rules by a layer's index
            that its configuration cannot say for fewer layers; says which.
    """
    refuse_adapted(model, "and layers are dropped from a model alone; merge them before")
    model = unwrapped(model)
    plan.check_fits(describe(model), "depth")
    layers = find_decoder_layers(model)
    kept = plan.kept_layers()
    refuse_dependent_layers(model, layers)
    refuse_quantised(
        layers.projections, "so it cannot be saved again; drop layers before quantisation"
    )
    if len(kept) == len(layers):
        raise InputError("the plan keeps every layer; expected one that drops some")
    try:
        with quiet_transformers(warnings=False):
            cut = _cut_model(model, layers, kept)
            _compare(model, layers, cut, kept)
    except _DiffersError as error:
        raise _unsayable(model, str(error)) from None
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split()[:MOST_WORDS])
        raise _unsayable(model, f"transformers says {said!r}") from error
    note_precision(cut, stored_precision(model))
    return cut


def _unsayable(model: Any, why: str) -> InputError:
    return InputError(
        f"{type(model).__name__} cannot be written without these layers: {why}. Its configuration "
        "does not say layer by layer what its layers are; other layers may do (all of a period, "
        "say), or another model"
    )


class _DiffersError(Exception):
    """The cut model is not what it should be."""


def _cut_model(model: Any, layers: DecoderLayers, kept: Sequence[int]) -> Any:
    config = cut_configuration(model.config, kept, len(layers))
    with no_init_weights(), torch.random.fork_rng():
        cut = type(model)._from_config(
            config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    cut.load_state_dict(_renumbered(model.state_dict(), layers.path, kept), assign=True)
    cut.tie_weights()
    cut.generation_config = deepcopy(getattr(model, "generation_config", None))
    return cut.to(input_device(model)).train(model.training)


def _renumbered(
    weights: Mapping[str, torch.Tensor], path: str, kept: Sequence[int]
) -> dict[str, torch.Tensor]:
    new = {old: place for place, old in enumerate(kept)}
    found = {}
    for name, tensor in weights.items():
        if name.startswith(f"{path}."):
            index, _, rest = name.removeprefix(f"{path}.").partition(".")
            if int(index) in new:
                found[f"{path}.{new[int(index)]}.{rest}"] = tensor
        else:
            found[name] = tensor
    return found


def _compare(model: Any, layers: DecoderLayers, cut: Any, kept: Sequence[int]) -> None:
    """Check that a cut model is the whole one without its layers.

    Raises:
        _DiffersError: it is not; says where.
    """
    ours = find_decoder_layers(cut)
    if len(ours) != len(kept):
        raise _DiffersError(f"it would have {len(ours)} layers, not {len(kept)}")
    for place, old in enumerate(kept):
        if difference := next(_differences(layers.modules[old], ours.modules[place]), None):
            raise _DiffersError(f"layer {old} would be layer {place}, and there {difference}")
    units = find_units(layers, "layer")
    skipping = Skipping(model, layers, units)
    gone = [unit for unit in units if unit.layer not in kept]
    inputs, longer = short_inputs(model, SHORT), short_inputs(model, _past_window(model))
    with torch.no_grad(), evaluation_mode(model), evaluation_mode(cut):
        with skipping.without(gone):
            logits = model(**accepted(model.forward, inputs), use_cache=False).logits
            stream = first_of(run_body(model, longer)[0])
        _generate(model, cut, inputs)
        _same(cut(**accepted(cut.forward, inputs), use_cache=False).logits, logits, "logits")
        _same(first_of(run_body(cut, longer)[0]), stream, "hidden states")


def _generate(model: Any, cut: Any, inputs: Mapping[str, torch.Tensor]) -> None:
    """Check that text can be generated where it could be before: a cache may want certain layers.

    Raises:
        _DiffersError: it cannot.
    """
    words = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    try:
        model.generate(**words, max_new_tokens=2, do_sample=False)
    except Exception:
        return
    try:
        cut.generate(**words, max_new_tokens=2, do_sample=False)
    except Exception as error:
        raise _DiffersError(f"no text could be generated, {error}") from None


def _same(found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    allowed = ROUNDINGS * torch.finfo(wanted.dtype).eps * float(wanted.abs().max())
    apart = float((found - wanted.to(found.device)).abs().max())
    if not apart <= allowed:
        raise _DiffersError(
            f"its {what} would be up to {apart:.2g} from those of the model that passes over the "
            "layers, since layers of this architecture go by their index"
        )


def _past_window(model: Any) -> int:
    """Tokens of a text that a short sliding window does not hold, within the model's positions."""
    settings = model.config.get_text_config(decoder=True).to_dict()
    windows = [
        value
        for name, value in settings.items()
        if ("window" in name or "chunk_size" in name) and type(value) is int and value > 0
    ]
    wanted = max([SHORT, *(2 * window + 8 for window in windows if 2 * window + 8 <= LONGEST)])
    return min(wanted, int(settings.get("max_position_embeddings") or wanted))


def _differences(old: nn.Module, new: nn.Module) -> Iterator[str]:
    """In which plain attributes two layers differ, but for what they know of their place."""
    for (name, one), (_, other) in zip(old.named_modules(), new.named_modules(), strict=False):
        if type(one) is not type(other):
            yield f"{name or 'it'} is a {type(other).__name__}, not a {type(one).__name__}"
        for attribute, value in vars(one).items():
            if attribute.startswith("_") or _PLACE.search(attribute):
                continue
            now = vars(other).get(attribute)
            if isinstance(value, _PLAIN) and isinstance(now, _PLAIN) and value != now:
                yield f"{'.'.join(filter(None, (name, attribute)))} is {now!r}, not {value!r}"
