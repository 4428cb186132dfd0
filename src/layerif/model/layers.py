"""The decoder layers of a causal LM and their linear projections, found by structure, not by name.

Decoder layers are the elements of the outermost `nn.ModuleList` that has as many elements as the
model's configuration has hidden layers, each holding linear maps; where a vision tower has as many,
those nearest to the token embeddings. The projections of a layer are its `nn.Linear`
modules (subclasses too) and transformers' `Conv1D`, GPT-2's transposed linear map, and each expert
of a parameter that holds those of many. What else has two dimensions and more (convolutions,
state-space parameters, routers, blocks that layers share) is left as it is, and listed.

Where PEFT has put an adapter around a linear map, the projection is the map inside, by the name it
has without the adapter; the adapter's own matrices are not projections.
"""

from __future__ import annotations

from collections import defaultdict
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
from layerif.model.experts import ExpertMap, expert_maps
from layerif.model.precision import word_of
from layerif.model.sharing import refuse_shared_weights, shared_blocks

# In the names of maps that choose experts or mix streams; the second where there are experts.
_ROUTERS = ("router", "altup")
_GATES = ("gate", "shared_expert_gate", "wg")
# Maps whose weight their owner reads as a bare matrix, so that they are never called.
_BARE = {
    ("MambaMixer", "dt_proj"),
    ("FalconMambaMixer", "dt_proj"),
    ("JambaMambaMixer", "dt_proj"),
    ("DeepseekV4Attention", "o_a_proj"),
}


@dataclass(frozen=True, eq=False)
class Projection:
    """One linear map of a decoder layer.

    Attributes:
        layer: index of the decoder layer, from 0.
        name: path inside the decoder layer, e.g. `self_attn.q_proj`.
        module: the module that holds the weight.
        adapted: whether it is an expert's, and an adapter of PEFT changes its weight.
    """

    layer: int
    name: str
    module: nn.Module
    adapted: bool = False

    @property
    def key(self) -> str:
        """Canonical name, the same for every architecture: `layers.7.mlp.up_proj`."""
        return f"layers.{self.layer}.{self.name}"

    @property
    def parameter(self) -> torch.Tensor:
        """What holds the weight: it alone, or with those of other experts."""
        if isinstance(self.module, ExpertMap):
            return self.module.parameter
        weight = self.module.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def part(self, whole: torch.Tensor) -> torch.Tensor:
        """(out_features, in_features) what is this projection's of a tensor like `parameter`."""
        if isinstance(self.module, ExpertMap):
            return self.module.slice(whole)
        return whole.T if isinstance(self.module, Conv1D) else whole

    @property
    def fused(self) -> str | None:
        """What the parameter of an expert is called, the same for all of them; None for others."""
        return self.key.rpartition(".")[0] if isinstance(self.module, ExpertMap) else None

    @property
    def weight(self) -> torch.Tensor:
        """The weight as (out_features, in_features); a view, so that writing to it prunes it.

        Where it is `packed`, what is stored, in whatever form that is.
        """
        return self.part(self.parameter.data)

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
    """The decoder layers of a model, in order, and all their projections, layer by layer.

    Attributes:
        path: where the list of layers lies in the model.
        modules: the layers.
        projections: the linear maps, those of each expert among them.
        rest: name and size of what else holds weights of two dimensions and more, and is left as it
            is: convolutions, state-space parameters, routers, blocks that several layers share.
    """

    path: str
    modules: Sequence[nn.Module]
    projections: Sequence[Projection]
    rest: Sequence[tuple[str, int]] = ()

    def __len__(self) -> int:
        return len(self.modules)

    @property
    def linear(self) -> list[Projection]:
        """The projections that are modules of their own, where adapters can be put."""
        return [p for p in self.projections if p.fused is None]

    @property
    def kinds_of_rest(self) -> list[str]:
        """The names of `rest` without their layers."""
        return sorted({name.split(".", 2)[2].removesuffix(".weight") for name, _ in self.rest})

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
            or a projection's weight serves in another place too (tied or shared); names the
            weights.
    """
    model = unwrapped(model)
    expected = _configured_layers(model)
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 0
    }
    linear = {p: m for p, m in lists.items() if any(is_linear(inner) for inner in m.modules())}
    candidates = {p: m for p, m in linear.items() if expected is None or len(m) == expected} or {
        # LongCat counts the attentions, two a layer.
        p: m
        for p, m in linear.items()
        if expected is not None and expected % len(m) == 0 and len(m) > 1
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
    hidden = getattr(_text_config(model), "hidden_size", None)
    wrapped = {
        id(module.get_base_layer())  # type: ignore[operator]
        for module in model.modules()
        if type(module).__name__ == "ParamWrapper"
    }
    shared = {id(weight) for weight in shared_blocks(model, layers, is_linear)}
    projections = [
        Projection(index, name, module, id(getattr(module, "owner", None)) in wrapped)
        for index, layer in enumerate(layers)
        for name, module in _maps(layer, hidden)
    ]
    projections = [p for p in projections if id(p.parameter) not in shared]
    refuse_shared_weights(model, layers, path, [p.parameter for p in projections])
    return DecoderLayers(path, layers, projections, _rest(layers, projections))


def _maps(layer: nn.Module, hidden: int | None) -> Iterator[tuple[str, nn.Module]]:
    """The linear maps of a layer by name, in the order of its modules; routers are left out."""
    modules = dict(_without_adapters(layer))
    experts: dict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
    for path, maps in expert_maps(modules, hidden):
        experts[id(maps[0].owner)] += [(f"{path}.{one.expert}", one) for one in maps]
    routed = bool(experts) or any(name.endswith("experts") for name in modules)
    for name, module in modules.items():
        if is_linear(module) and not _is_router(name, module, routed):
            owner = type(modules[name.rpartition(".")[0]]).__name__
            if (owner, name.rpartition(".")[2]) not in _BARE:
                yield name, module
        yield from experts[id(module)]


def _rest(layers: Sequence[nn.Module], projections: Sequence[Projection]) -> list[tuple[str, int]]:
    known = {id(projection.parameter) for projection in projections}
    rest: list[tuple[str, int]] = []
    for index, layer in enumerate(layers):
        for name, module in _without_adapters(layer):
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.ndim > 1 and id(parameter) not in known:
                    known.add(id(parameter))  # blocks that layers share are counted once
                    path = f"layers.{index}.{name}.{own}".replace("..", ".")
                    rest.append((path, parameter.numel()))
    return rest


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


def _is_router(name: str, module: nn.Module, routed: bool) -> bool:
    """Whether a map chooses what is computed, or mixes a few streams: part of the model's wiring.

    Args:
        routed: whether the layer has experts.
    """
    parts = name.split(".")
    if any(word in part for word in _ROUTERS for part in (*parts, type(module).__name__.lower())):
        return True
    # In a list of experts `gate` is a map of one of them.
    listed = any(part.isdigit() for part in parts)
    return routed and not listed and any(part in _GATES for part in parts)


def _text_config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        return config.get_text_config(decoder=True)
    return config


def _configured_layers(model: nn.Module) -> int | None:
    return getattr(_text_config(model), "num_hidden_layers", None)


def _path_of_embeddings(model: nn.Module) -> str:
    """The path of the token embeddings; empty for a module that does not tell."""
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    return next((path for path, module in model.named_modules() if module is embeddings), "")
