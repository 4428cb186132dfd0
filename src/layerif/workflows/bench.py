"""One model, changed by one plan after another, and measured on the same items each time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple
from pathlib import Path
from typing import Any

from layerif.artifacts import Fingerprint, Plan, Results, hash_model, hash_texts
from layerif.core.checkpoint import Steps
from layerif.core.progress import note
from layerif.data import Corpus, Task
from layerif.evaluation.evaluate import evaluate
from layerif.evaluation.options import EvaluateOptions
from layerif.model.opening import Tokenizer, setting
from layerif.workflows.stage import json_stage, read_with

COMPARISON_FILE = "comparison.json"


class Bench(ABC):
    """What a comparison of plans of one kind has in common with those of another.

    Attributes:
        folder: of the results.
        model: the whole model, between plans.
    """

    def __init__(
        self, folder: Path, model: Any, tokenizer: Tokenizer, cache: Path | None = None
    ) -> None:
        self.folder, self.model, self.tokenizer, self._cache = folder, model, tokenizer, cache
        self._hash = hash_model(model)

    @abstractmethod
    def changed(self, plan: Plan | None) -> AbstractContextManager[None]:
        """The model as a plan changes it inside, and as before afterwards; None changes nothing."""

    @abstractmethod
    def asked(self, plan: Plan) -> dict[str, Any]:
        """What a model changed by a plan depends on, as plain values."""

    def measured(
        self,
        name: str,
        plan: Plan | None,
        on: Sequence[Task | Corpus],
        options: EvaluateOptions,
    ) -> Results:
        """Results of the model changed by a plan; reused where they exist."""
        texts = [
            source.text("evaluation")
            if isinstance(source, Corpus)
            else [*map(astuple, source.sample("test", options.samples, options.seed))]
            for source in on
        ]
        wanted = self.fingerprint(plan, hash_texts(texts), **options.values())

        def work(_steps: Steps) -> Results:
            note(f"{name}: measuring")
            with self.changed(plan):
                # Likelihoods of the model itself serve elsewhere too, those of a plan do not.
                cache = self._cache if plan is None else None
                return evaluate(self.model, self.tokenizer, on, options=options, cache=cache)

        path = self.folder / f"{name}-results.json"
        return json_stage(path, wanted, Results, work, overwrite=True)

    def fingerprint(self, plan: Plan | None, data: str, **more: Any) -> Fingerprint:
        """What a figure of the model changed by a plan depends on."""
        of_plan = {"plan": None} if plan is None else self.asked(plan)
        made_with = setting(self.model).model_dump() | read_with(self.model, self.tokenizer)
        return Fingerprint(model=self._hash, data=data, options={**more, **of_plan, **made_with})
