"""Our models as lm-evaluation-harness takes them. This module imports lm-eval."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM

from layerif.errors import NumericalError
from layerif.model import Tokenizer
from layerif.progress import Advance, progress


class HarnessModel(HFLM):
    """lm-eval's own Hugging Face model around an open one, so that its figures are lm-eval's.

    What it computes is left as it is: one forward pass of full logits, in the model's own dtype.
    Added are a progress bar, and a stop at the first likelihood that is not finite.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, batch_size: int) -> None:
        """Wrap a model; lm-eval gives its tokenizer a padding token, so it gets a copy."""
        super().__init__(
            pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size
        )

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        return self._watched(super().loglikelihood, requests)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        return self._watched(super().loglikelihood_rolling, requests)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return self._watched(super().generate_until, requests)

    def _watched(self, run: Callable[..., list[Any]], requests: Sequence[Any]) -> list[Any]:
        with progress("lm-evaluation-harness", len(requests)) as advance:
            self.set_cache_hook(_Watch(advance))
            return run(requests, disable_tqdm=True)


class _Watch:
    """Stands where lm-eval hands each answer to its cache, as soon as there is one."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance

    def add_partial(self, kind: str, request: tuple[Any, ...], answer: Any) -> None:
        likelihood = answer[0] if kind == "loglikelihood" else answer
        if isinstance(likelihood, float) and not math.isfinite(likelihood):
            *before, text = (str(part)[-40:] for part in request)
            after = f" after the prompt ending in {before[0]!r}" if before else ""
            raise NumericalError(
                f"the likelihood of {text!r}{after} is not finite (try --dtype float32)"
            )
        self._advance()
