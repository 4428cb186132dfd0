"""The matrices of a LoRA that is in the model already, fine-tuned on the task: the paper's way.

With x the input of the projection and B A the adapter, y = W x + s B A x, so

    grad(B) = s sum_t e_t (A x_t)^T,    grad(A) = s sum_t (B^T e_t) x_t^T

A and B are taken as they are now, at the model that they adapt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from layerif.errors import InputError
from layerif.influence.subspaces.base import Matrix, SubspaceKind
from layerif.model.layers import Projection, find_decoder_layers


@dataclass(frozen=True)
class AdapterSubspace:
    """A and B of one LoRA adapter of a PEFT model.

    Attributes:
        model: the PEFT model, or a transformers model with an adapter added.
        adapter: which of its adapters, which has to be the active one.
        origin: where it comes from, for the record.
    """

    model: nn.Module
    adapter: str = "default"
    origin: Mapping[str, Any] = field(default_factory=dict)

    name = "adapter"

    @property
    def record(self) -> dict[str, Any]:
        config = getattr(self.model, "peft_config", {})[self.adapter]
        return {
            "adapter": self.adapter,
            "rank": config.r,
            "alpha": config.lora_alpha,
            "rslora": config.use_rslora,
            **self.origin,
        }

    def matrices(self, projections: Sequence[Projection]) -> list[Matrix]:
        """B and A of every projection that the adapter targets.

        Raises:
            InputError: there is no such LoRA, it is not active, or some of what it trains in the
                decoder layers is no A or B of a plain LoRA (DoRA, biases, mixtures of experts).
        """
        from peft.tuners.lora import LoraLayer

        layers = {
            id(module.get_base_layer()): module
            for module in self.model.modules()
            if isinstance(module, LoraLayer)
        }
        self._refuse_other_kinds()
        adapters = sorted({name for layer in layers.values() for name in layer.r})
        if self.adapter not in adapters:
            raise InputError(
                f"the model has no LoRA adapter {self.adapter!r}; it has "
                f"{', '.join(adapters) or 'none'}. Open it with one, or let one be warmed up"
            )
        found: list[Matrix] = []
        for row, projection in enumerate(projections):
            layer = layers.get(id(projection.module))
            if layer is None or self.adapter not in layer.lora_A:
                continue
            self._check(layer, projection)
            up = layer.lora_B[self.adapter].weight.detach()  # (out, rank)
            down = layer.lora_A[self.adapter].weight.detach()  # (rank, in)
            key, scale, rank = projection.key, float(layer.scaling[self.adapter]), len(down)
            out, into = projection.out_features, projection.in_features
            found.append(Matrix(f"{key}.lora_B", row, (out, rank), right=down, scale=scale))
            found.append(Matrix(f"{key}.lora_A", row, (rank, into), left=up.T, scale=scale))
        if not found:
            raise InputError(
                f"the LoRA adapter {self.adapter!r} targets no projection of the decoder layers"
            )
        return found

    def _refuse_other_kinds(self) -> None:
        """What is trained outside the decoder layers belongs to none of them, and is left out."""
        config = getattr(self.model, "peft_config", {}).get(self.adapter)
        if config is None:
            return
        if config.peft_type != "LORA":
            raise InputError(
                f"the adapter {self.adapter!r} is of the kind {config.peft_type.value}, and the "
                "subspace adapter is that of a LoRA, whose maps are the same for every token; "
                "score the model that it is in by the subspace fresh_lora, two_sided or full"
            )
        parts = []
        if config.lora_bias:
            parts.append("biases of B (lora_bias)")
        if config.bias != "none":
            parts.append(f"biases of the model (bias={config.bias!r})")
        if config.target_parameters:
            parts.append("parameters by name (target_parameters)")
        for layer in find_decoder_layers(self.model).modules:
            for path, module in layer.named_modules():
                if self.adapter in getattr(module, "modules_to_save", {}):
                    parts.append(f"the module {path} itself (modules_to_save)")
        if parts:
            raise InputError(
                f"the adapter {self.adapter!r} trains {parts[0]} beside its A and B, which the "
                "subspace adapter leaves out: influence would be that of a part of it; use an "
                "adapter without, or score the model that it is in by the subspace fresh_lora, "
                "two_sided or full"
            )

    def _check(self, layer: Any, projection: Projection) -> None:
        active = list(layer.active_adapters)
        state = "merged" if layer.merged else "disabled" if layer.disable_adapters else ""
        if active != [self.adapter] or state:
            raise InputError(
                f"at {projection.key} the adapter {self.adapter!r} is not active by itself "
                f"(active: {', '.join(active) or 'none'}{state and ', and ' + state}); "
                f"call set_adapter({self.adapter!r}) first, and unmerge or enable it"
            )
        if variant := layer.lora_variant.get(self.adapter):
            kind = type(variant).__name__.removesuffix("Variant").removesuffix("Linear")
            raise InputError(
                f"the adapter {self.adapter!r} at {projection.key} is of the kind {kind}, whose "
                "gradient is not that of a plain LoRA; use an adapter without it"
            )


ADAPTER = SubspaceKind(lambda model, o: AdapterSubspace(model, o.adapter_name), of_adapter=True)
