"""Whether a model that has been opened predicts at all: from what came before, and in numbers."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from layerif.errors import InputError, NumericalError
from layerif.model.causes import reading
from layerif.model.layers import find_decoder_layers
from layerif.model.precision import word_of


@torch.no_grad()
def check_predictions(model: Any, device: torch.device) -> None:
    """Run two texts of two tokens, which differ in the second one.

    Where a model works through a text by chunks, the texts are a chunk long: that is other code.

    Args:
        device: where the model takes its tokens.

    Raises:
        InputError: the first prediction changes with the token after it (BERT and its kin).
        NumericalError: predictions are not finite; names where that begins.
    """
    chunk = getattr(model.config, "chunk_size", None)
    behind = max(1, chunk - 1) if isinstance(chunk, int) else 1
    pairs = torch.tensor([[1] + [2] * behind, [1] + [3] * behind], device=device)
    broken: list[str] = []
    with ExitStack() as watching, reading(_trial(model)):
        layers = find_decoder_layers(model)

        def watch(name: str) -> Any:
            def observe(_module: nn.Module, _args: Any, output: Any) -> None:
                first = output[0] if isinstance(output, tuple | list) else output
                if not broken and isinstance(first, torch.Tensor) and not first.isfinite().all():
                    broken.append(name)

            return observe

        for index, layer in enumerate(layers.modules):
            watching.enter_context(layer.register_forward_hook(watch(f"layer {index}")))
        logits = model(input_ids=pairs, use_cache=False).logits.float()
    # A vocabulary's unused places may be minus infinity.
    if broken or logits.isnan().any() or logits.isposinf().any():
        raise NumericalError(_not_finite(model, broken[0] if broken else "the logits"))
    first = logits[:, 0]
    if not torch.allclose(first[0], first[1], rtol=1e-2, atol=1e-2):
        raise InputError(
            f"what {model.config.name_or_path} ({type(model).__name__}) predicts after a token "
            "depends on the tokens that follow: it is no causal language model"
        )


def _trial(model: Any) -> str:
    what = f"{model.config.name_or_path} ({type(model).__name__})"
    return f"a text with {what} in {word_of(model.dtype)}"


def _not_finite(model: Any, where: str) -> str:
    dtype = word_of(model.dtype)
    name = model.config.name_or_path
    for key, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.isfinite().all():
            where = f"the weight {key}"
            break
    if dtype == "float16":
        return (
            f"not finite in float16 at {where} of {name}: numbers above 65,504 do not fit; use "
            "dtype='bfloat16', which has the range of float32"
        )
    return f"not finite in {dtype} at {where} of {name}: its files hold NaN or numbers too large"
