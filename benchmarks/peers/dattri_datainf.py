"""dattri's DataInf on the given problem; in an environment with dattri, torch and transformers."""

from __future__ import annotations

from typing import Any

import torch
from common import Problem, run
from dattri.algorithm.influence_function import IFAttributorDataInf
from dattri.task import AttributionTask
from torch.utils.data import DataLoader, TensorDataset

BATCH = 4


def solve(problem: Problem) -> torch.Tensor:
    """(n,) influence on the mean validation loss, summed over projections: dattri keeps no more."""

    def loss(params: Any, data: Any) -> torch.Tensor:
        tokens, labels = data
        logits = torch.func.functional_call(problem.model, params, (tokens,)).logits
        return problem.loss(logits[0], labels[0])

    task = AttributionTask(loss, problem.model, problem.model.state_dict())
    attributor = IFAttributorDataInf(task, regularization=problem.damping)
    train, validation = (
        DataLoader(TensorDataset(*side), batch_size=BATCH)
        for side in (problem.train, problem.validation)
    )
    attributor.cache(train)
    found: torch.Tensor = attributor.attribute(train, validation)
    return found.mean(1)


if __name__ == "__main__":
    run(solve)
