"""Our models as lm-evaluation-harness takes them. This module imports lm-eval."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from layerif.core.progress import Advance, progress
from layerif.data.batching import rope_borders
from layerif.data.tokenizing import begun
from layerif.errors import NumericalError
from layerif.model.opening import Tokenizer

_LOG = logging.getLogger("lm_eval.models.huggingface")
# lm-eval's names of how much is generated.
_ROOM = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens", "max_length")


class HarnessModel(HFLM):
    """lm-eval's own Hugging Face model around an open one, so that its figures are lm-eval's.

    What it computes is left as it is: one forward pass of full logits, in the model's own dtype.
    Added are a progress bar, a stop at the first likelihood that is not finite, and our rules of
    what a text becomes (`layerif.data.tokenizing`) and of what may share a batch. They change the
    figures where a tokenizer ends every text with EOS, which lm-eval would score in the place of
    a candidate's first token, where running text would begin with BOS twice, and where a batch's
    longest row would decide how the others' positions are read.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, batch_size: int) -> None:
        """Wrap a model; lm-eval gives its tokenizer a padding token, so it gets a copy."""
        super().__init__(
            pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size
        )
        self._borders = rope_borders(model)
        self._after_prefix = False

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """The tokens of a text: as everywhere in layerif, unless lm-eval says what to add."""
        if add_special_tokens is not None:
            return super().tok_encode(string, add_special_tokens, left_truncate_len, **kwargs)
        (ids,) = begun(self.tokenizer, [string])
        if self._after_prefix and ids[:1] == [self.prefix_token_id]:
            ids = ids[1:]
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(texts, T) tokens and mask of prompts to go on from."""
        rows = [self.tok_encode(string) for string in strings]
        if left_truncate_len and max(map(len, rows)) > left_truncate_len:
            _LOG.warning(f"Prompts lose their beginning beyond {left_truncate_len} tokens.")
            rows = [row[-left_truncate_len:] for row in rows]
        padded = self.tokenizer.pad(
            {"input_ids": rows}, padding_side=padding_side, return_tensors="pt"
        )
        return padded["input_ids"], padded["attention_mask"]

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        return self._watched(super().loglikelihood, requests)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        # lm-eval puts its prefix, BOS mostly, in front of the text's tokens.
        self._after_prefix = True
        try:
            return self._watched(super().loglikelihood_rolling, requests)
        finally:
            self._after_prefix = False

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return self._watched(self._generated, requests)

    def _generated(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Replies; prompts that may come to a border of the model's positions run one by one."""

        def crosses(request: Any) -> bool:
            prompt, settings = request.args
            room = [settings[name] for name in _ROOM if isinstance(settings.get(name), int)]
            length = len(self.tok_encode(prompt)) + max(room, default=self.max_gen_toks)
            return any(length > border for border in self._borders)

        batched, size = super().generate_until, int(self.batch_size)

        def run(single: bool, some: list[Any]) -> list[str]:
            self.batch_size_per_gpu = 1 if single else size
            return batched(some, disable_tqdm)

        try:
            return _apart(requests, list(map(crosses, requests)), run)
        finally:
            self.batch_size_per_gpu = size

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Any],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Likelihoods; texts on both sides of a border of the model's positions run apart."""

        def side(request: Any) -> int:
            length = min(len(request[1]) + len(request[2]) - 1, self.max_length)
            return sum(length > border for border in self._borders)

        run = super()._loglikelihood_tokens
        return _apart(
            requests,
            list(map(side, requests)),
            lambda _, some: run(some, disable_tqdm, override_bs),
        )

    def _watched(self, run: Callable[..., list[Any]], requests: Sequence[Any]) -> list[Any]:
        with progress("lm-evaluation-harness", len(requests)) as advance:
            self.set_cache_hook(_Watch(advance))
            return run(requests, disable_tqdm=True)


def _apart(
    requests: Sequence[Any], keys: Sequence[Any], run: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """The answers to requests, in their order, of which those of a key are run together."""
    found: dict[int, Any] = {}
    for key in sorted(set(keys)):
        rows = [row for row, own in enumerate(keys) if own == key]
        found |= dict(zip(rows, run(key, [requests[row] for row in rows]), strict=True))
    return [found[row] for row in range(len(requests))]


class _Watch:
    """In the place of lm-eval's cache, which is given each answer as soon as there is one."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance

    def add_partial(self, kind: str, request: tuple[Any, ...], answer: Any) -> None:
        likelihood = answer[0] if kind == "loglikelihood" else answer
        if isinstance(likelihood, float) and not math.isfinite(likelihood):
            *before, text = (str(part)[-40:] for part in request)
            after = f" after the prompt ending in {before[0]!r}" if before else ""
            raise NumericalError(
                f"the likelihood of {text!r}{after} is not finite (try dtype='float32')"
            )
        self._advance()
