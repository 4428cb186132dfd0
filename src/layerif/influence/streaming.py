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
from layerif.influence.blocks import Groups
from layerif.influence.estimators import EstimatorOptions, FactorPasses, Factors, Part, find
from layerif.influence.estimators.factored import FactoredGradients, FactoredRows
from layerif.influence.estimators.passes import Passes
from layerif.influence.keeping import Keeping
from layerif.influence.passes import Measured, Runner, Samples
from layerif.influence.subspaces import Matrix


def stream(
    runner: Runner,
    matrices: Sequence[Matrix],
    groups: Groups,
    train: Samples,
    validation: Samples,
    options: EstimatorOptions,
    *,
    formed: bool,
    steps: Steps,
) -> Measured:
    """Run the validation samples once and the training samples as often as the estimator asks.

    Args:
        runner: of the batches.
        matrices: of the subspace.
        groups: the blocks they make.
        options: the estimator, which has a form in passes, and its damping.
        formed: form the gradients of a batch (small subspaces), or leave them in factors, which an
            estimator that goes by positions has in any case.
        steps: keeps the state of the passes at least every minute, to go on from.
    """
    estimator = find(options.name)
    open_passes = estimator.passes
    assert open_passes is not None
    means, validation_loss = _validation(runner, matrices, validation, steps)
    opened = {
        name: open_passes(
            name,
            [Part(matrices[row].key, means[row], matrices[row].shape) for row in rows],
            len(train.items),
            options.dampings,
        )
        for name, rows in groups.items()
    }
    means.clear()
    walk = _Walk(runner, matrices, groups, formed and not estimator.by_position)
    losses = _run(walk, opened, train, steps)
    solutions = {name: passes.solutions() for name, passes in opened.items()}
    return Measured(solutions, losses, validation_loss)


def factors_by_position(
    runner: Runner, matrices: Sequence[Matrix], groups: Groups, train: Samples, steps: Steps
) -> dict[str, list[Factors]]:
    """The Kronecker factors of every block's matrices, in one pass over the training samples."""
    opened = {
        name: FactorPasses(
            name,
            [Part(matrices[r].key, torch.zeros(matrices[r].size), matrices[r].shape) for r in rows],
            len(train.items),
        )
        for name, rows in groups.items()
    }
    _run(_Walk(runner, matrices, groups, formed=False), opened, train, steps)
    return {name: passes.factors for name, passes in opened.items()}


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
    step = "validation"
    means = [torch.zeros(matrix.size, dtype=torch.float64) for matrix in matrices]
    loss = torch.zeros((), dtype=torch.float64)

    def add(row: int, gradients: FactoredGradients) -> None:
        ones = torch.ones(len(gradients.errors), device=gradients.errors.device)
        means[row] += gradients.weighted(ones).to(means[row])

    if processes.agreed(lambda: steps.load(step) is None):
        own = {id(items) for items in processes.share(validation.batches)}
        for items in validation.batches:
            if id(items) in own:
                loss += runner.factors(items, "validation sample", add).double().sum().cpu()
            else:
                runner.skip(items)
        processes.add([loss, *means])
        for mean in means:
            mean.div_(len(validation.items))
        loss /= len(validation.items)
        if processes.is_first():
            steps.save(step, {"loss": loss} | {f"{row}": mean for row, mean in enumerate(means)})
    else:
        kept = steps.awaited(step)
        means, loss = [kept[f"{row}"] for row in range(len(matrices))], kept["loss"]
        for items in validation.batches:
            runner.skip(items)
    return means, loss.item()


def passes_needed(options: EstimatorOptions) -> int:
    """How often the training samples have to be run."""
    open_passes = find(options.name).passes
    assert open_passes is not None
    any_part = Part("any", torch.zeros(1), (1, 1))
    return open_passes("any", [any_part], 1, options.dampings).needed


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

        def take(row: int, gradients: FactoredGradients) -> None:
            if row in waiting:
                raise InputError(
                    f"{self.matrices[row].key} is used more than once in a forward pass, and the "
                    "norms of full gradients add up over single uses alone; choose another subspace"
                )
            waiting[row] = gradients
            members = self.groups[block_of[row]]
            if all(member in waiting for member in members):
                parts = FactoredRows([waiting[member] for member in members])
                opened[block_of[row]].observe(rows, parts)
                for member in members:
                    waiting[member] = _DONE

        return self.runner.factors(items, "training sample", take)


# In place of gradients that were handed on, so that they need not stay.
_DONE = FactoredGradients(torch.empty(0, 0, 0), torch.empty(0, 0, 0), 0.0)
