"""The configuration of a model with fewer layers: all that it says layer by layer, cut alike.

Found by form, not by architecture: lists as long as there are layers, lists of layers' indices,
dictionaries by index, and counts of leading layers. Rules that a model computes from a layer's
index cannot be cut; the model that comes of it is compared with what it should be before use.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

# Lists of indices of layers.
_INDICES = re.compile(r"(_indices|_idxs?|_layer_ids)$|^(mlp_only_layers|moe_layers)$")
# How many of the first layers are of another kind than the rest.
_LEADING = ("first_k_dense_replace", "num_dense_layers")
# What is never said layer by layer, whatever its length.
_OTHER = re.compile(r"token|^architectures$|^id2label$|^label2id$")


def cut_configuration(
    config: PreTrainedConfig, kept: Sequence[int], layers: int
) -> PreTrainedConfig:
    """A copy of a configuration for the layers `kept` of `layers`, in order.

    Raises:
        Whatever transformers raises where it refuses the settings.
    """
    values = config.to_dict()
    text = config.get_text_config(decoder=True)
    own = next((n for n in values if getattr(config, n, None) is text), None)
    settings = values if own is None else values[own]
    number = text.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    for name, value in [*settings.items()]:
        settings[name] = _cut(name, value, kept, layers)
    settings[number] = len(kept)
    if "attention_types" in settings and "attention_layers" in settings:  # GPT-Neo says it twice
        settings["attention_types"] = [[[kind], 1] for kind in settings["attention_layers"]]
    cut = type(config).from_dict(values)
    cut.name_or_path = config.name_or_path
    return cut


def _cut(name: str, value: Any, kept: Sequence[int], layers: int) -> Any:
    if _OTHER.search(name):
        return value
    new = {old: place for place, old in enumerate(kept)}
    if name in _LEADING and isinstance(value, int):
        return sum(old < value for old in kept)
    if isinstance(value, list | tuple):
        if _INDICES.search(name) and all(type(i) is int and 0 <= i < layers for i in value):
            return type(value)(new[i] for i in value if i in new)
        return type(value)(value[i] for i in kept) if len(value) == layers else value
    if isinstance(value, dict) and value:
        keys = {key: int(key) for key in value if re.fullmatch(r"\d+", str(key))}
        if len(keys) == len(value) and max(keys.values()) < layers:
            return {type(k)(new[i]): value[k] for k, i in keys.items() if i in new}
    return value
