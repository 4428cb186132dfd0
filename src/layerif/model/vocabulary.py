"""Whether a model has an embedding for each token of a text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from layerif.errors import InputError


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
