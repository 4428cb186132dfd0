"""Whether a model predicts: finite numbers, from earlier tokens alone, for each token of a text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    name = f"{model.config.name_or_path} ({type(model).__name__})"
    broken: list[str] = []

    def watch(place: str) -> Any:
        def observe(_module: nn.Module, _args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) else output
            if not broken and isinstance(first, torch.Tensor) and not first.isfinite().all():
                broken.append(place)

        return observe

    with ExitStack() as watching, reading(f"a text with {name} in {word_of(model.dtype)}"):
        for index, layer in enumerate(find_decoder_layers(model).modules):
            watching.enter_context(layer.register_forward_hook(watch(f"layer {index}")))
        logits = model(input_ids=pairs, use_cache=False).logits.float()
    # A vocabulary's unused places may be minus infinity.
    if broken or logits.isnan().any() or logits.isposinf().any():
        raise NumericalError(_not_finite(model, broken[0] if broken else "the logits"))
    first = logits[:, 0]
    if not torch.allclose(first[0], first[1], rtol=1e-2, atol=1e-2):
        raise InputError(
            f"what {name} predicts after a token depends on the tokens that follow: it is no "
            "causal language model"
        )


def _not_finite(model: Any, where: str) -> str:
    for key, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.isfinite().all():
            where = f"the weight {key}"
            break
    dtype = word_of(model.dtype)
    why = "its files hold NaN or numbers too large"
    if dtype == "float16":
        why = "numbers above 65,504 do not fit; use dtype='bfloat16', which has float32's range"
    return f"not finite in {dtype} at {where} of {model.config.name_or_path}: {why}"


def check_tokens(model: Any, texts: Iterable[Sequence[int]]) -> None:
    """Refuse texts with tokens that the model has no embedding for.

    A tokenizer may know more tokens than its model, as long as none of them occurs: so the texts
    are looked at, and not the tokenizer.

    Raises:
        InputError: there is such a token; names it.
    """
    known = model.get_input_embeddings().weight.shape[0]
    highest = max((max(ids) for ids in texts if ids), default=0)
    if highest >= known:
        raise InputError(
            f"token {highest} occurs in the texts, and {model.config.name_or_path} has embeddings "
            f"for the tokens 0 to {known - 1:,} alone: its tokenizer belongs to another model, or "
            "tokens were added to it without resizing the embeddings (resize_token_embeddings)"
        )
