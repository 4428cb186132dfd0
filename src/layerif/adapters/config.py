"""The configuration of a mixture of LoRA experts, as PEFT saves it in `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from peft import PeftConfig

from layerif.artifacts import CARD_FILE, Plan
from layerif.core.files import quoted, write_text
from layerif.errors import InputError
from layerif.report.cards import opening_code

# The kind of adapter, in PEFT's tables and files.
PEFT_TYPE = "LORA_MOE"
# The model card of an adapter, where PEFT has written none, and what PEFT's leaves open.
NEW_CARD = """---
library_name: peft
---

# A mixture of LoRA experts
"""
CARD_HEADING = "## How to Get Started with the Model"
CARD_OPEN = "Use the code below to get started with the model.\n\n[More Information Needed]"


class MethodName(str):
    """A plain string that reads like a member of PEFT's enumeration, which takes no new ones."""

    __slots__ = ()

    @property
    def value(self) -> str:
        return str(self)


@dataclass
class LoraMoeConfig(PeftConfig):
    """A mixture of LoRA experts at every targeted projection (MoLA, arXiv 2402.08562).

    With n experts, x the input and W0 the projection: y = W0 x + (alpha / r) sum_e w_e B_e A_e x,
    w the k largest of softmax(R x), brought back to the sum 1. One expert is plain LoRA.

    Attributes:
        num_experts: n of every decoder layer, or a list with one for each.
        top_k: k, at most n where a layer has fewer; a number or a list.
        r: rank of each expert; a number or a list.
        lora_alpha: a number or a list.
        lora_dropout: of the experts' input; the router's is not dropped.
        strict_dropout: a mask of its own for every expert, as the reference has it; slower.
        aux_loss_coef: factor of the load-balancing loss of each router (`balance.py`); 0 for none.
            Where gradients are accumulated, the loss is to be scaled as the model's own is:
            `ScaleBalanceLoss` does so under transformers' Trainer, and `batch_state` serves others.
        target_modules: names of projections, or a regular expression; None for all of them.
        exclude_modules: names of projections to be left alone.
        init_weights: B is 0, A and R uniform; False leaves all three normal, for tests.
        modules_to_save: other modules that are trained and saved.
        bias: `none`; PEFT asks every configuration for it.
    """

    num_experts: int | list[int] = 4
    top_k: int | list[int] = 2
    r: int | list[int] = 8
    lora_alpha: float | list[float] = 16.0
    lora_dropout: float = 0.0
    strict_dropout: bool = False
    aux_loss_coef: float = 0.0
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    init_weights: bool = True
    modules_to_save: list[str] | None = None
    bias: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = MethodName(PEFT_TYPE)
        for name in ("num_experts", "top_k", "r"):
            values = getattr(self, name)
            for value in values if isinstance(values, Sequence) else [values]:
                if not isinstance(value, int) or value < 1:
                    raise InputError(
                        f"{name} must be whole numbers of at least 1, not {quoted(value)}"
                    )
        if self.aux_loss_coef < 0:
            raise InputError(f"aux_loss_coef must not be negative, and is {self.aux_loss_coef}")
        if self.bias != "none":
            raise InputError(f"bias must be 'none', not {self.bias!r}: biases are not trained")
        if not 0 <= self.lora_dropout < 1:
            raise InputError(f"lora_dropout must be within 0 to 1, not {self.lora_dropout}")

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write `adapter_config.json`, and into the model card beside it how it is loaded."""
        super().save_pretrained(save_directory, **kwargs)
        path = Path(save_directory) / CARD_FILE
        card = path.read_text(encoding="utf-8") if path.is_file() else NEW_CARD
        if "import layerif" not in card:
            base = self.base_model_name_or_path or "BASE_MODEL"
            said = opening_code(base, own_method=True).removeprefix("## Use\n\n")
            if CARD_OPEN not in card:
                card = f"{card.rstrip()}\n\n{CARD_HEADING}\n\n{CARD_OPEN}\n"
            write_text(path, card.replace(CARD_OPEN, said))

    @classmethod
    def for_plan(cls, plan: Plan, **options: Any) -> Self:
        """With the experts of a plan, layer by layer.

        Raises:
            InputError: it is no plan of experts.
        """
        if plan.kind != "experts":
            raise InputError(
                f"the plan is one of {plan.kind}; a plan of experts is needed, as allocate_experts "
                "makes it"
            )
        return cls(num_experts=[int(n) for n in plan.allocation], **options)

    def check_layers(self, layers: int) -> None:
        """Refuse a list that has not one value for each decoder layer.

        Raises:
            InputError: names it, with both lengths.
        """
        for name in ("num_experts", "top_k", "r", "lora_alpha"):
            values = getattr(self, name)
            if isinstance(values, Sequence) and len(values) != layers:
                raise InputError(
                    f"{name} has {len(values)} values, and the model {layers} decoder layers"
                )

    def of_layer(self, layer: int) -> tuple[int, int, int, float]:
        """Experts, experts a token is sent to, rank and alpha of one decoder layer."""
        experts, top_k, rank, alpha = (
            values[layer] if isinstance(values, Sequence) else values
            for values in (self.num_experts, self.top_k, self.r, self.lora_alpha)
        )
        return int(experts), min(int(top_k), int(experts)), int(rank), float(alpha)
