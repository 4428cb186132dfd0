"""The decoder layers of a causal LM and their linear projections, found by structure, not by name.

Decoder layers are the elements of the outermost `nn.ModuleList` that has as many elements as the
model's configuration has hidden layers, each holding linear maps; where a vision tower has as many,
those nearest to the token embeddings. The projections of a layer are its `nn.Linear`
modules (subclasses too) and transformers' `Conv1D`, GPT-2's transposed linear map. Embeddings, the
language-model head and norms are outside or are not linear maps, so they are never touched.

Where PEFT has put an adapter around a linear map, the projection is the map inside, by the name it
has without the adapter; the adapter's own matrices are no projections.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.pytorch_utils import Conv1D

from layerif.errors import InputError
from layerif.model.precision import word_of
from layerif.model.sharing import refuse_shared_weights


@dataclass(frozen=True, eq=False)
class Projection:
    """One linear map of a decoder layer.

    Attributes:
        layer: index of the decoder layer, from 0.
        name: path inside the decoder layer, e.g. `self_attn.q_proj`.
        module: the module that holds the weight.
    """

    layer: int
    name: str
    module: nn.Module

    @property
    def key(self) -> str:
        """Canonical name, the same for every architecture: `layers.7.mlp.up_proj`."""
        return f"layers.{self.layer}.{self.name}"

    @property
    def weight(self) -> torch.Tensor:
        """The weight as (out_features, in_features); a view, so that writing to it prunes it.

        Where it is `packed`, what is stored, in whatever form that is.
        """
        weight = self.module.weight
        assert isinstance(weight, torch.Tensor)
        return weight.data.T if isinstance(self.module, Conv1D) else weight.data

    @property
    def packed(self) -> bool:
        """Whether what is stored is no matrix of floating numbers, as in a quantised map."""
        shape = (self.out_features, self.in_features)
        return not self.weight.is_floating_point() or self.weight.shape != shape

    @property
    def out_features(self) -> int:
        # A quantised weight is packed, so the module is asked and not the weight.
        return int(getattr(self.module, "out_features", self.weight.shape[0]))

    @property
    def in_features(self) -> int:
        return int(getattr(self.module, "in_features", self.weight.shape[-1]))

    @property
    def numel(self) -> int:
        return self.out_features * self.in_features


@dataclass(frozen=True, eq=False)
class DecoderLayers:
    """The decoder layers of a model, in order, and all their projections, layer by layer."""

    path: str
    modules: Sequence[nn.Module]
    projections: Sequence[Projection]

    def __len__(self) -> int:
        return len(self.modules)

    def of(self, layer: int) -> list[Projection]:
        """The projections of one decoder layer."""
        return [p for p in self.projections if p.layer == layer]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(layers,) parameters in the projections of each layer."""
        sizes = np.zeros(len(self.modules), dtype=np.int64)
        for projection in self.projections:
            sizes[projection.layer] += projection.numel
        return sizes


def refuse_quantised(projections: Sequence[Projection], why: str) -> None:
    """Refuse weights that are stored in a packed form.

    Args:
        why: the end of the error: what cannot be done with them, and what can.

    Raises:
        InputError: there is one; names its projection.
    """
    if packed := next((p for p in projections if p.packed), None):
        stored = packed.weight
        raise InputError(
            f"the weight of {packed.key} is quantised (stored as {word_of(stored.dtype)} of shape "
            f"{tuple(stored.shape)}), {why}"
        )


def is_linear(module: nn.Module) -> bool:
    """Whether the module computes y = x W^T (+ b), with W stored either way round."""
    return isinstance(module, nn.Linear | Conv1D)


def unwrapped(model: Any) -> Any:
    """The model of transformers inside a PEFT model, with its adapters active.

    Raises:
        InputError: the PEFT model is more than that: it puts learnt tokens before each text.
    """
    if not hasattr(model, "get_base_model"):
        return model
    config = model.active_peft_config
    if config.is_prompt_learning:
        raise InputError(
            f"the adapter {model.active_adapter!r} is of the kind {config.peft_type.value}, which "
            "puts learnt tokens before each text; only adapters beside projections, such as LoRA, "
            "are supported"
        )
    return model.get_base_model()


def find_decoder_layers(model: nn.Module) -> DecoderLayers:
    """Find the decoder layers of any causal LM of transformers, with PEFT's adapters or without.

    Raises:
        InputError: there is no such list of layers (saying what was looked for and what there is),
            the layers hold weights that are no linear map (fused expert weights), or a projection's
            weight serves in another place too (tied or shared); names the weights.
    """
    model = unwrapped(model)
    expected = _configured_layers(model)
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 0
    }
    candidates = {
        path: module
        for path, module in lists.items()
        if (expected is None or len(module) == expected)
        and all(any(is_linear(inner) for inner in layer.modules()) for layer in module)
    }
    outermost = [
        path for path in candidates if not any(path.startswith(f"{other}.") for other in candidates)
    ]
    if not outermost:
        found = ", ".join(f"{path} ({len(module)})" for path, module in lists.items())
        raise InputError(
            f"no decoder layers found in {type(model).__name__}: looked for an nn.ModuleList of "
            f"{'any number of' if expected is None else expected} modules that each hold nn.Linear "
            f"or Conv1D projections; the module lists here are: {found or 'none'}"
        )
    embeddings = "" if expected is None else _path_of_embeddings(model)

    def rank(path: str) -> tuple[int, int]:
        """How many steps the path shares with that of the embeddings, then parameters."""
        steps = zip(path.split("."), embeddings.split("."), strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], steps))
        return shared, sum(weight.numel() for weight in lists[path].parameters())

    path = max(outermost, key=rank)
    layers = list(candidates[path])
    projections = [
        Projection(index, name, module)
        for index, layer in enumerate(layers)
        for name, module in _without_adapters(layer)
        if is_linear(module)
    ]
    _refuse_fused_weights(layers, path, projections)
    refuse_shared_weights(model, layers, path, [p.module for p in projections])
    return DecoderLayers(path, layers, projections)


def _without_adapters(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As `named_modules`, each of PEFT's wrappers replaced by the module that it wraps."""
    seen: set[nn.Module] = set()

    def walk(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
        module = getattr(module, "get_base_layer", lambda: module)()
        if module not in seen:
            seen.add(module)
            yield path, module
            for name, child in module.named_children():
                yield from walk(child, f"{path}.{name}" if path else name)

    yield from walk(layer, "")


def _configured_layers(model: nn.Module) -> int | None:
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config(decoder=True)
    return getattr(config, "num_hidden_layers", None)


def _path_of_embeddings(model: nn.Module) -> str:
    """The path of the token embeddings; empty for a module that does not tell."""
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    return next((path for path, module in model.named_modules() if module is embeddings), "")


def _refuse_fused_weights(
    layers: Sequence[nn.Module], path: str, projections: Sequence[Projection]
) -> None:
    """Expert weights fused into one parameter are no projection: say so.

    Mostly they are three-dimensional. DBRX stacks its experts' rows in two dimensions, where only
    size tells them from a router held as a plain parameter, or a norm for each head.
    """
    known = {id(projection.module.weight) for projection in projections}
    for index, layer in enumerate(layers):
        largest = max(p.numel for p in projections if p.layer == index)
        for place, module in _without_adapters(layer):
            for own, weight in module.named_parameters(recurse=False):
                fused = weight.ndim > 2 or (weight.ndim == 2 and weight.numel() >= largest)
                if fused and id(weight) not in known:
                    name = ".".join(filter(None, (path, str(index), place, own)))
                    raise InputError(
                        f"{name} is one parameter of shape {tuple(weight.shape)}: weights that are "
                        "no linear map of their own (fused experts, state-space filters) are not "
                        "supported, only nn.Linear and Conv1D projections"
                    )
