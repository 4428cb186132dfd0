"""Summed negative log-likelihoods of texts: what perplexity and accuracy are both made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerif.artifacts import Fingerprint, hash_model, hash_texts
from layerif.core.caching import remembered
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.progress import progress
from layerif.data.batching import Encoded, collate, pack, rope_borders
from layerif.errors import NumericalError
from layerif.estimates import largest, note_memory
from layerif.likelihood import row_sums, token_losses
from layerif.model.opening import input_device, setting


@dataclass(frozen=True)
class Cache:
    """Where likelihoods and replies are kept, by model and texts, so that none is made twice.

    Attributes:
        folder: a file for each model and list of texts; None keeps nothing.
        model: hash of the model's weights and configuration.
    """

    folder: Path | None = None
    model: str = ""

    @classmethod
    def of(cls, model: Any, folder: Path | None) -> Cache:
        """The cache in `folder` for this model."""
        return cls() if folder is None else cls(folder, hash_model(model))

    def recall(
        self,
        model: Any,
        data: Sequence[Any],
        compute: Callable[[Steps], dict[str, torch.Tensor]],
        **options: Any,
    ) -> dict[str, torch.Tensor]:
        """What `compute` returns, looked up where it was computed before.

        Args:
            data: the texts, as plain JSON values.
            options: all else that the result depends on, rounding included.
        """
        if self.folder is None:
            return compute(NO_STEPS)
        options |= setting(model).model_dump()
        if borders := rope_borders(model):
            options["rope_borders"] = borders
        wanted = Fingerprint(model=self.model, data=hash_texts(data), options=options)
        return remembered(self.folder, wanted, compute, optional=True)


NO_CACHE = Cache()


def summed_nats(
    model: Any,
    items: Sequence[Encoded],
    *,
    batch_tokens: int,
    doing: str,
    name_of: Callable[[int], str],
    cache: Cache = NO_CACHE,
) -> np.ndarray:
    """(items,) float64 negative log-likelihood of the scored tokens of each text, in nats.

    Args:
        items: the texts, in the order of the result.
        doing: what the progress bar says.
        name_of: what an error calls the text of a position in `items`.
        cache: where they are looked up and kept; with one, finished batches survive an
            interruption.

    Raises:
        NumericalError: a sum is not finite; names the text.
    """

    @torch.inference_mode()
    def compute(steps: Steps) -> dict[str, torch.Tensor]:
        device = input_device(model)
        numbered = [Encoded(row, item.input_ids, item.start) for row, item in enumerate(items)]
        nats = torch.empty(len(items), dtype=torch.float64)
        groups = pack(numbered, batch_tokens, model)
        note_memory(model, doing, "forward", largest(groups))
        with progress(doing, sum(len(item.input_ids) for item in items)) as advance:
            for number, group in enumerate(groups):
                kept = steps.load(f"batch-{number:06d}")
                if kept is None:
                    batch = collate(group, device=device)
                    sums = row_sums(token_losses(model, batch).double(), batch).cpu()
                    for item, finite in zip(group, sums.isfinite().tolist(), strict=True):
                        if not finite:
                            raise NumericalError(
                                f"the likelihood of {name_of(item.index)} is not finite (try "
                                "dtype='float32')"
                            )
                    kept = {"nats": sums}
                    steps.save(f"batch-{number:06d}", kept)
                nats[[item.index for item in group]] = kept["nats"]
                advance(sum(len(item.input_ids) for item in group))
        return {"nats": nats}

    texts = [[item.start, item.input_ids] for item in items]
    found = cache.recall(model, texts, compute, what="likelihoods", batch_tokens=batch_tokens)
    return found["nats"].numpy()
