"""Fine-tuning of adapters by a plan: a mixture of LoRA experts, LoRA of ranks, or plain LoRA."""
