"""pyDVL's inverse harmonic mean (DataInf's swap) on the given problem, a decoder layer a block.

In an environment with pyDVL[influence], torch and transformers. Its gradients are computed anew for
each block, so 210 blocks would cost 210 passes; layers cost one a layer.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from common import Problem, run
from pydvl.influence.torch import InverseHarmonicMeanInfluence
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Logits(nn.Module):
    """The model with its logits alone as output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(tokens).logits
        return logits


def solve(problem: Problem) -> torch.Tensor:
    """(layers, n) influence on the mean validation loss."""
    blocks: OrderedDict[str, list[str]] = OrderedDict()
    for name in problem.names:
        blocks.setdefault(name.split(".")[2], []).append(f"inner.{name}")
    influence = InverseHarmonicMeanInfluence(
        Logits(problem.model),
        lambda logits, labels: problem.loss(logits[0], labels[0]),
        problem.damping,
        blocks,
    )
    influence.fit(DataLoader(TensorDataset(*problem.train), batch_size=len(problem.train[0])))
    found = influence.influences_by_block(*problem.validation, *problem.train)
    # In a single batch its sums are divided by n once more; in several, not everywhere alike.
    count = len(problem.train[0])
    return count * torch.stack([values.mean(0) for values in found.values()])


if __name__ == "__main__":
    run(solve)
