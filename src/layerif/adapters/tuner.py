"""How PEFT puts mixtures of LoRA experts into a model, and the method's entry in PEFT's tables."""

from __future__ import annotations

from typing import Any, ClassVar

from peft import mapping
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from layerif.adapters.balance import BatchState
from layerif.adapters.config import PEFT_TYPE, LoraMoeConfig
from layerif.adapters.layer import LoraMoeLinear
from layerif.errors import InputError
from layerif.model.layers import Projection, find_decoder_layers, is_linear
from layerif.model.peft_adapters import check_rank


class LoraMoeModel(BaseTuner):
    """A model with a `LoraMoeLinear` in the place of every targeted projection.

    Projections and the decoder layer that each belongs to are found by structure, so that every
    architecture of causal LMs is served and targets may be left out.
    """

    prefix = "lora_moe_"
    tuner_layer_cls = LoraMoeLinear
    # Never asked: targets that are left out are all projections.
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _prepare_adapter_config(
        self, peft_config: LoraMoeConfig, model_config: dict[str, Any]
    ) -> LoraMoeConfig:
        layers = find_decoder_layers(self.model)
        peft_config.check_layers(len(layers))
        self._paths = {f"{layers.path}.{index}.": index for index in range(len(layers))}
        if peft_config.target_modules is None:
            peft_config.target_modules = sorted({p.name for p in layers.linear})
        return peft_config

    def _prepare_model(self, peft_config: LoraMoeConfig, model: nn.Module) -> None:
        states = (m.state for m in model.modules() if isinstance(m, LoraMoeLinear))
        self._state = next(states, None) or BatchState()
        self._state.attach(model)

    def _create_and_replace(
        self,
        config: LoraMoeConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_options: Any,
    ) -> None:
        if isinstance(target, LoraMoeLinear):
            target.update_layer(adapter_name, config)
            return
        path = next((path for path in self._paths if current_key.startswith(path)), None)
        if path is None or not (is_linear(target) or hasattr(target, "in_features")):
            raise InputError(
                f"{current_key} is no projection of a decoder layer, and experts are counted by "
                "layer; leave it out of target_modules"
            )
        layer = self._paths[path]
        if not config.inference_mode:
            projection = Projection(layer, current_key.removeprefix(path), target)
            check_rank([projection], config.of_layer(layer)[2])
        module = LoraMoeLinear(target, adapter_name, config, layer, self._state)
        if adapter_name not in self.active_adapters:
            module.requires_grad_(False)  # a further adapter is not trained until it is set
        self._replace_module(parent, target_name, module, target)

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        for module in self.model.modules():
            if isinstance(module, LoraMoeLinear):
                module.check_mergeable(module.active_adapters)

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter out; with the last one goes the hook of its routers' state."""
        super().delete_adapter(adapter_name)
        if not self.peft_config:
            self._state.detach()

    def _unload_and_optionally_merge(self, *args: Any, **options: Any) -> nn.Module:
        plain: nn.Module = super()._unload_and_optionally_merge(*args, **options)
        self._state.detach()
        return plain


def register() -> None:
    """Enter the method in PEFT's tables; a second time changes nothing.

    PEFT's enumeration of methods takes no new ones, but a plain string serves as a key. Without
    this PEFT does not know the method, and raises a KeyError that names it.
    """
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = LoraMoeConfig
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = LoraMoeModel
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = LoraMoeModel.prefix
