"""Projections that engines such as vLLM and SGLang run as one, and that share one choice there."""

from __future__ import annotations

# The name that the engine gives, and the projections it consists of.
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
_GROUPS = {name: group for group, names in FUSED.items() for name in names}


def fused_group(module: str) -> str:
    """The name of a projection with its group in its place: `layers.7.self_attn.qkv_proj`."""
    owner, _, name = module.rpartition(".")
    return f"{owner}.{_GROUPS.get(name, name)}"
