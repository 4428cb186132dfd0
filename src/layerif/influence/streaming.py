"""Influence without keeping gradients: several passes over the samples, vectors in between.

Memory does not grow with samples times parameters: what stays between the passes is n numbers and d
numbers a block. For full weights the gradients of a batch are never formed either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from layerif.core import processes
from layerif.core.checkpoint import Steps
from layerif.data.batching import Encoded
from layerif.errors import InputError
from layerif.influence.estimators.base import Solution
from layerif.influence.estimators.block import Factors, Part
from layerif.influence.estimators.ekfac import FactorPasses
from layerif.influence.estimators.factored import FactoredGradients, FactoredRows
from layerif.influence.estimators.passes import Passes
from layerif.influence.estimators.registry import ESTIMATORS
from layerif.influence.keeping import Keeping
from layerif.influence.options import SolveOptions
from layerif.influence.preparing import Prepared, Runner, Samples
from layerif.influence.solving import Groups
from layerif.influence.subspaces.base import Matrix


def stream(
    work: Prepared, groups: Groups, options: SolveOptions, steps: Steps
) -> tuple[dict[str, list[Solution]], torch.Tensor, float]:
    """Run the validation samples once and the training samples as often as the estimator asks.

    Args:
        work: samples, matrices and the model. The gradients of a batch are formed (small
            subspaces) or left in factors, as an estimator that goes by positions has them always.
        groups: the blocks that the matrices make.
        options: the estimator, which has a form in passes, and its damping.
        steps: keeps the state of the passes at least every minute, to go on from.

    Returns:
        The solutions of each block by its name, one for each of the options' dampings; (n,) float64
        losses of the training samples, both batch by batch; mean loss of the validation samples.
    """
    estimator, dampings = ESTIMATORS.find(options.estimator), options.dampings
    open_passes = estimator.passes
    assert open_passes is not None
    steps = work.steps(steps, "passes", options.part(SolveOptions).recorded(), groups)
    of_any = open_passes("any", [Part("any", torch.zeros(1), (1, 1))], 1, dampings)
    with work.running(of_any.needed) as runner:
        means, validation_loss = _validation(runner, work.matrices, work.validation, steps)
        parts = [Part(m.key, v, m.shape) for m, v in zip(work.matrices, means, strict=True)]
        count = len(work.train.items)
        opened = {
            name: open_passes(name, [parts[row] for row in rows], count, dampings)
            for name, rows in groups.items()
        }
        means.clear()
        parts.clear()
        walk = _Walk(runner, work.matrices, groups, work.formed and not estimator.by_position)
        losses = _run(walk, opened, work.train, steps)
    solutions = {name: passes.solutions() for name, passes in opened.items()}
    return solutions, losses, validation_loss


def factors_by_position(runner: Runner, work: Prepared, steps: Steps) -> dict[str, Factors]:
    """The Kronecker factors of every matrix by its key, in one pass over the training samples."""
    matrices, count = work.matrices, len(work.train.items)
    opened = {
        m.key: FactorPasses(m.key, [Part(m.key, torch.zeros(m.size), m.shape)], count)
        for m in matrices
    }
    alone = {matrix.key: [row] for row, matrix in enumerate(matrices)}
    _run(_Walk(runner, matrices, alone, formed=False), opened, work.train, steps)
    return {key: passes.factors[0] for key, passes in opened.items()}


def _run(walk: _Walk, opened: Mapping[str, Passes], train: Samples, steps: Steps) -> torch.Tensor:
    """Every pass of every block; (n,) float64 losses of the training samples, batch by batch."""
    runner = walk.runner
    losses = torch.zeros(len(train.items), dtype=torch.float64)
    keeping = Keeping(opened, losses, steps)
    keeping.resume()
    needed = max(passes.needed for passes in opened.values())
    starts = train.starts
    for _ in range(keeping.finished):
        for items in train.batches:
            runner.skip(items)
    while keeping.finished < needed:
        own = set(processes.share(processes.agreed(lambda: keeping.to_do(starts))))
        for number, (items, start) in enumerate(zip(train.batches, starts, strict=True)):
            if number not in own:
                runner.skip(items)
                continue
            place = slice(start, start + len(items))
            found = walk.over(items, opened, place).double().cpu()
            if keeping.finished == 0:
                losses[place] = found
            keeping.after_batch()
        keeping.end_pass()
    return losses


def _validation(
    runner: Runner, matrices: Sequence[Matrix], validation: Samples, steps: Steps
) -> tuple[list[torch.Tensor], float]:
    """For each matrix (d,) float64 the mean gradient of the validation samples; their mean loss."""
    means = [torch.zeros(matrix.size, dtype=torch.float64) for matrix in matrices]
    loss = torch.zeros((), dtype=torch.float64)

    def add(row: int, gradients: FactoredGradients) -> None:
        ones = torch.ones(len(gradients.errors), device=gradients.errors.device)
        means[row] += gradients.weighted(ones).to(means[row])

    if processes.agreed(lambda: steps.load("validation") is None):
        own = {id(items) for items in processes.share(validation.batches)}
        for items in validation.batches:
            if id(items) in own:
                loss += runner.factors(items, "validation sample", add).double().sum().cpu()
            else:
                runner.skip(items)
        processes.add([loss, *means])
        for total in (loss, *means):
            total.div_(len(validation.items))
        if processes.is_first():
            sums = {f"{row}": mean for row, mean in enumerate(means)}
            steps.save("validation", {"loss": loss} | sums)
    else:
        kept = steps.awaited("validation")
        means, loss = [kept[f"{row}"] for row in range(len(matrices))], kept["loss"]
        for items in validation.batches:
            runner.skip(items)
    return means, loss.item()


@dataclass
class _Walk:
    """Hands the gradients of a batch to the passes of every block."""

    runner: Runner
    matrices: Sequence[Matrix]
    groups: Groups
    formed: bool

    def over(
        self, items: Sequence[Encoded], opened: Mapping[str, Passes], place: slice
    ) -> torch.Tensor:
        rows = torch.arange(place.start, place.stop)
        if self.formed:
            losses, gradients = self.runner.gradients(items, "training sample")
            for name, members in self.groups.items():
                pieces = [gradients[row] for row in members]
                whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)
                opened[name].observe(rows, whole)
            return losses
        block_of = {row: name for name, members in self.groups.items() for row in members}
        waiting: dict[int, FactoredGradients] = {}
        seen: set[int] = set()

        def take(row: int, gradients: FactoredGradients) -> None:
            if row in seen:
                raise InputError(
                    f"{self.matrices[row].key} is used more than once in a forward pass, and the "
                    "norms of full gradients add up over single uses alone; choose another subspace"
                )
            seen.add(row)
            waiting[row] = gradients
            members = self.groups[block_of[row]]
            if all(member in waiting for member in members):
                parts = FactoredRows([waiting.pop(member) for member in members])
                opened[block_of[row]].observe(rows, parts)

        return self.runner.factors(items, "training sample", take)
