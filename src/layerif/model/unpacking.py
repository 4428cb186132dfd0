"""Weights stored as packed integers, unpacked as the model is opened.

transformers keeps a folder of compressed-tensors packed until its first forward pass, and unpacks
all of it then. Here that is done at once, and ordinary linear maps take the place of those that
remember how they were packed: the model is then one of floating numbers like any other.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from layerif.model.quiet import quiet_bars


def unpack(model: Any) -> None:
    """Unpack the weights of a model that was opened from packed integers; another stays as it is.

    The values are those that its own forward pass would use.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    compressor = getattr(quantizer, "compressor", None)
    if compressor is None:
        return
    with quiet_bars():
        compressor.decompress_model(model)
    for path, module in list(model.named_modules()):
        if hasattr(module, "quantization_scheme") and isinstance(module, nn.Linear):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, _plain(module))
    del model.hf_quantizer
    del model.config.quantization_config
    model.is_quantized = False


def _plain(module: nn.Linear) -> nn.Linear:
    """A linear map of the same weight and bias, and nothing else."""
    plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(module.weight.data, requires_grad=False)
    if module.bias is not None:
        plain.bias = nn.Parameter(module.bias.data, requires_grad=False)
    return plain.train(module.training)
