"""Fine-tuning of adapters by a plan: a mixture of LoRA experts, LoRA of ranks, or plain LoRA."""

from layerif.finetuning.finetune import finetune
from layerif.finetuning.options import FinetuneOptions

__all__ = ["FinetuneOptions", "finetune"]
