"""A projection with a mixture of LoRA experts beside it, in stacked form.

A of all experts is one (n r, in) matrix and B one (out, n r): two products whatever n is, with the
gate applied between them, in the space of ranks. No loop over experts, no copy to the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from layerif.adapters.balance import BatchState, balance_loss, injected
from layerif.adapters.config import LoraMoeConfig
from layerif.adapters.routing import gates, logits
from layerif.errors import InputError


class LoraMoeLinear(nn.Module, BaseTunerLayer):
    """y = W0 x + (alpha / r) sum_e w_e B_e A_e dropout(x), for each active adapter.

    Attributes:
        lora_moe_A: (n r, in) of each adapter, expert after expert.
        lora_moe_B: (out, n r).
        lora_moe_router: (n, in); none where there is one expert.
    """

    # One for all layers of a model; the tuner keeps it up to date.
    state: BatchState

    adapter_layer_names = ("lora_moe_A", "lora_moe_B", "lora_moe_router")
    # What PEFT's base class has, which is not typed.
    get_base_layer: Any
    set_adapter: Any
    active_adapters: Any
    disable_adapters: Any
    merged: Any
    merged_adapters: list[str]
    _cast_input_dtype: Any
    _move_adapter_to_device_of_base_layer: Any

    other_param_names = ("experts", "top_k", "rank", "scaling", "dropout", "strict", "balance")

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: LoraMoeConfig,
        layer: int,
        state: BatchState | None = None,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.layer = layer
        self.state = state or BatchState()
        self.observers: dict[str, Callable[[torch.Tensor, torch.Tensor, BatchState], None]] = {}
        inner = self.get_base_layer()
        shape = inner.weight.shape
        self.in_features = int(getattr(inner, "in_features", shape[0]))
        self.out_features = int(getattr(inner, "out_features", shape[-1]))
        self.lora_moe_A = nn.ParameterDict()
        self.lora_moe_B = nn.ParameterDict()
        self.lora_moe_router = nn.ParameterDict()
        self.experts: dict[str, int] = {}
        self.top_k: dict[str, int] = {}
        self.rank: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.dropout: dict[str, float] = {}
        self.strict: dict[str, bool] = {}
        self.balance: dict[str, float] = {}
        self._disable_adapters = False
        self.merged_adapters = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: LoraMoeConfig) -> None:
        """Add an adapter, or replace one of that name."""
        experts, top_k, rank, alpha = config.of_layer(self.layer)
        self.experts[adapter_name] = experts
        self.top_k[adapter_name] = top_k
        self.rank[adapter_name] = rank
        self.scaling[adapter_name] = alpha / rank
        self.dropout[adapter_name] = config.lora_dropout
        self.strict[adapter_name] = config.strict_dropout
        self.balance[adapter_name] = config.aux_loss_coef
        stacked = experts * rank
        self.lora_moe_A[adapter_name] = nn.Parameter(torch.randn(stacked, self.in_features))
        self.lora_moe_B[adapter_name] = nn.Parameter(torch.randn(self.out_features, stacked))
        if adapter_name in self.lora_moe_router:
            del self.lora_moe_router[adapter_name]  # of the one that is replaced
        if experts > 1:
            router = torch.randn(experts, self.in_features)
            self.lora_moe_router[adapter_name] = nn.Parameter(router)
        if config.init_weights:
            # A and R uniform as PyTorch's linear maps are (fan-in: inputs), B zero.
            for matrices in (self.lora_moe_A, self.lora_moe_router):
                if adapter_name in matrices:
                    nn.init.kaiming_uniform_(matrices[adapter_name], a=math.sqrt(5))
            nn.init.zeros_(self.lora_moe_B[adapter_name])
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        for name in self.active_adapters:
            if name in self.lora_moe_A:
                up = self.lora_moe_B[name]
                inputs = self._cast_input_dtype(x, self.lora_moe_A[name].dtype)
                reduced = self._reduced(inputs, name)
                if self.experts[name] > 1:
                    result = result + functional.linear(self._gated(reduced, inputs, name), up)
                else:  # in the order of PEFT's plain LoRA, so that it is the same to the bit
                    result = result + functional.linear(reduced, up) * self.scaling[name]
        return result.to(dtype)

    def _gated(self, reduced: torch.Tensor, inputs: torch.Tensor, name: str) -> torch.Tensor:
        """(..., n r) each expert's part times its weight and alpha / r.

        Scaling the weights, n numbers a token, saves a pass over the output each way.
        """
        scores = logits(inputs, self.lora_moe_router[name])
        weights, chosen = gates(scores, self.top_k[name])
        if name in self.observers:
            self.observers[name](scores.softmax(-1), chosen, self.state)
        apart = reduced.unflatten(-1, (self.experts[name], self.rank[name]))
        scaled = (weights * self.scaling[name]).to(reduced.dtype)
        gated = (apart * scaled.unsqueeze(-1)).flatten(-2)
        factor = self.balance[name] * self.state.scale
        if factor and self.training and torch.is_grad_enabled():
            loss = balance_loss(scores.softmax(-1), chosen, self.state, self.top_k[name])
            gated = injected(gated, loss, factor)
        return gated

    def _reduced(self, inputs: torch.Tensor, name: str) -> torch.Tensor:
        """(..., n r) A_e dropout(x) of all experts."""
        down, share = self.lora_moe_A[name], self.dropout[name]
        if not self.training or share == 0:
            return functional.linear(inputs, down)
        if not self.strict[name]:
            return functional.linear(functional.dropout(inputs, share), down)
        experts = self.experts[name]
        copies = inputs.unsqueeze(-2).expand(*inputs.shape[:-1], experts, self.in_features)
        dropped = functional.dropout(copies, share)
        apart = torch.einsum("...ei,eri->...er", dropped, down.unflatten(0, (experts, -1)))
        return apart.flatten(-2)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the active adapters to the projection's weight; possible with one expert alone.

        Raises:
            InputError: an adapter has more: which expert is taken depends on the token.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.lora_moe_A]
        self.check_mergeable(names)
        weight = self.get_base_layer().weight
        for name in names:
            merged = weight.data + self.get_delta_weight(name).to(weight.dtype)
            if safe_merge and not bool(merged.isfinite().all()):
                raise InputError(f"the adapter {name} makes weights that are not finite")
            weight.data.copy_(merged)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take out again what was merged last."""
        weight = self.get_base_layer().weight
        while self.merged_adapters:
            delta = self.get_delta_weight(self.merged_adapters.pop())
            weight.data.sub_(delta.to(weight.dtype))

    def check_mergeable(self, names: list[str]) -> None:
        """Refuse adapters of several experts.

        Raises:
            InputError: as `merge`.
        """
        for name in names:
            if self.experts.get(name, 1) > 1:
                raise InputError(
                    f"the adapter {name} has {self.experts[name]} experts in decoder layer "
                    f"{self.layer}: which of them are active depends on the token, so no one "
                    "weight does the same; keep the adapter beside the model (save_pretrained), or "
                    "merge adapters of one expert a layer"
                )

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """What merging adds to the weight, as it is stored.

        Raises:
            InputError: as `merge`.
        """
        self.check_mergeable([adapter])
        up, down = self.lora_moe_B[adapter], self.lora_moe_A[adapter]
        exact = torch.promote_types(up.dtype, torch.float32)
        delta = (up.to(exact) @ down.to(exact)) * self.scaling[adapter]
        return delta.T if isinstance(self.get_base_layer(), Conv1D) else delta

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return self.experts.get(adapter_name) == 1

    def __repr__(self) -> str:
        return "lora_moe." + super().__repr__()


def batch_state(model: nn.Module) -> BatchState:
    """What the routers of a model know of its batches; one for all of them.

    A training loop of one's own sets its `scale` where it accumulates gradients.

    Raises:
        InputError: the model has no mixture of LoRA experts in it.
    """
    for module in model.modules():
        if isinstance(module, LoraMoeLinear):
            return module.state
    raise InputError(
        "the model has no mixture of LoRA experts in it; put one in with get_peft_model(model, "
        "LoraMoeConfig(...))"
    )
