"""kronfluence's gradient pass on the given problem: dot products, a projection a module.

In an environment with kronfluence, torch and transformers.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from common import Problem, run
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import nn
from torch.utils.data import TensorDataset

BATCH = 16


class Completions(Task):
    """Mean completion loss of each sample, over the B of every LoRA."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Any:
        tokens, labels = batch
        logits = model(tokens).logits
        pairs = zip(logits, labels, strict=True)
        return torch.stack([self._problem.loss(*pair) for pair in pairs]).sum()

    def compute_measurement(self, batch: Any, model: nn.Module) -> Any:
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        return [name.removesuffix(".weight") for name in self._problem.names]


def solve(problem: Problem) -> torch.Tensor:
    """(projections, n) influence on the mean validation loss."""
    task = Completions(problem)
    train, validation = TensorDataset(*problem.train), TensorDataset(*problem.validation)
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "problem",
            prepare_model(problem.model, task),
            task,
            cpu=True,
            output_dir=folder,
            disable_tqdm=True,
        )
        analyzer.fit_all_factors(
            "none",
            train,
            per_device_batch_size=BATCH,
            factor_args=FactorArguments(strategy="identity"),
        )
        analyzer.compute_pairwise_scores(
            "dot",
            "none",
            validation,
            train,
            per_device_query_batch_size=BATCH,
            per_device_train_batch_size=BATCH,
            score_args=ScoreArguments(
                compute_per_module_scores=True,
                aggregate_query_gradients=True,
                damping_factor=0.0,
            ),
        )
        found = analyzer.load_pairwise_scores("dot")
    count = len(problem.validation[0])
    names = [name.removesuffix(".weight") for name in problem.names]
    return torch.stack([found[name].sum(0) / count for name in names])


if __name__ == "__main__":
    run(solve)
