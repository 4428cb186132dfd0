"""Whether a model predicts: finite numbers, from earlier tokens alone, for each token of a text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING

from layerif.errors import InputError, LayerifError, NumericalError
from layerif.model.causes import cause_of, out_of_memory, reading
from layerif.model.layers import find_decoder_layers
from layerif.model.precision import word_of

# In the names of what models take beside text.
_SENSES = ("pixel", "image", "video", "audio", "features", "patches")


@torch.no_grad()
def check_predictions(model: Any, device: torch.device) -> None:
    """Run two texts of two tokens, which differ in the second one.

    Where a model works through a text by chunks, the texts are a chunk long: that is other code.

    Args:
        device: where the model takes its tokens.

    Raises:
        InputError: the first prediction changes with the token after it (BERT and its kin), or the
            model does not run on text alone, on all of its layers, or in its precision.
        NumericalError: predictions are not finite; names where that begins.
    """
    chunk = getattr(model.config, "chunk_size", None)
    behind = max(1, chunk - 1) if isinstance(chunk, int) else 1
    pairs = torch.tensor([[1] + [2] * behind, [1] + [3] * behind], device=device)
    name = f"{model.config.name_or_path} ({type(model).__name__})"
    broken: list[str] = []
    called: set[int] = set()

    def watch(index: int) -> Any:
        def observe(_module: nn.Module, _args: Any, output: Any) -> None:
            called.add(index)
            first = output[0] if isinstance(output, tuple | list) else output
            if not broken and isinstance(first, torch.Tensor) and not first.isfinite().all():
                broken.append(f"layer {index}")

        return observe

    layers = find_decoder_layers(model).modules
    with ExitStack() as watching, reading(f"a text with {name} in {word_of(model.dtype)}"):
        for index, layer in enumerate(layers):
            watching.enter_context(layer.register_forward_hook(watch(index)))
        try:
            logits = model(input_ids=pairs, use_cache=False).logits.float()
            _check_positions(model, pairs, logits, name)
        except Exception as error:
            if reason := _reason(model, error):
                raise InputError(f"{name} {reason}") from error
            raise
    if idle := [index for index in range(len(layers)) if index not in called]:
        raise InputError(
            f"{name} passes over {len(idle)} of its {len(layers)} layers where a text is alone, "
            f"layer {idle[0]} first, so nothing can be said of them; a model all of whose layers "
            "read text is expected"
        )
    # A vocabulary's unused places may be minus infinity.
    if broken or logits.isnan().any() or logits.isposinf().any():
        raise NumericalError(_not_finite(model, broken[0] if broken else "the logits"))
    first = logits[:, 0]
    if not torch.allclose(first[0], first[1], rtol=1e-2, atol=1e-2):
        raise InputError(
            f"what {name} predicts after a token depends on the tokens that follow: it is no "
            "causal language model"
        )


def _beside_text(model: Any) -> bool:
    """Whether a model's kind is one that reads images or sound, too."""
    kind = type(model.config)
    return kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or kind in MODEL_FOR_MULTIMODAL_LM_MAPPING


def _check_positions(model: Any, pairs: torch.Tensor, logits: torch.Tensor, name: str) -> None:
    """See to it that a model beside images counts positions from 0, as those that it is given.

    Raises:
        InputError: it does not.
    """
    if not _beside_text(model) or "position_ids" not in signature(model.forward).parameters:
        return
    positions = torch.arange(pairs.shape[1], device=pairs.device).repeat(len(pairs), 1)
    given = model(input_ids=pairs, position_ids=positions, use_cache=False).logits.float()
    if not torch.allclose(given, logits, rtol=1e-2, atol=1e-2, equal_nan=True):
        raise InputError(
            f"{name} counts the positions of a text otherwise than from 0 on, so texts of several "
            "lengths cannot be run together; such models are not supported"
        )


def _reason(model: Any, error: Exception) -> str | None:
    """Why a model of a known kind does not run; None where its error says it best."""
    text = str(error)
    if isinstance(error, LayerifError | ImportError) or out_of_memory(error):
        return None
    mixed = "dtype" in text or "scalar type" in text
    if mixed and model.dtype in (torch.bfloat16, torch.float16):
        return (
            f"does not run in {word_of(model.dtype)}: its code in transformers mixes precisions "
            f"({cause_of(error)}); use dtype='float32'"
        )
    if _beside_text(model) and any(word in text for word in _SENSES):
        return (
            f"does not run on text alone ({cause_of(error)}); a model that predicts the next token "
            "of a text without an image or sound beside it is expected"
        )
    return None


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
