"""Which projections make one block, and the influence through each block, one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from layerif.artifacts import BlockRecord
from layerif.choices import BlockGranularity, check_choice
from layerif.errors import InputError
from layerif.influence.estimators import Block, EstimatorOptions, Part, Solution, find
from layerif.model.layers import Projection
from layerif.progress import note, progress

Shape = tuple[int, int]


def group(projections: Sequence[Projection], block: BlockGranularity) -> dict[str, list[int]]:
    """For each block its name and the projections in it, by their place in `projections`.

    Raises:
        InputError: there is no such granularity.
    """
    check_choice(block, BlockGranularity, "block")
    if block == "matrix":
        return {projection.key: [row] for row, projection in enumerate(projections)}
    groups: dict[str, list[int]] = {}
    for row, projection in enumerate(projections):
        groups.setdefault(f"layers.{projection.layer}", []).append(row)
    return groups


def blocks(
    groups: dict[str, list[int]],
    projections: Sequence[Projection],
    shapes: Sequence[Shape],
    store: Sequence[torch.Tensor],
    means: Sequence[torch.Tensor],
) -> Iterator[Block]:
    """The blocks of `groups`, made when they are asked for.

    Args:
        groups: as `group` gives them.
        projections: of the model.
        shapes: (out, in) of each projection's trainable matrix.
        store: for each projection (samples, d), the training gradients.
        means: for each projection (d,), the mean validation gradient.
    """
    for name, rows in groups.items():
        parts = tuple(Part(projections[row].key, means[row], shapes[row]) for row in rows)
        yield Block(name, parts, tuple(store[row] for row in rows))


def solve(blocks: Iterable[Block], count: int, options: EstimatorOptions) -> dict[str, Solution]:
    """The solution of every block by its name; blocks that have not converged are noted.

    Raises:
        InputError: an estimator of the user's own gives a solution of another shape.
    """
    estimator = find(options.name)
    solutions = {}
    with progress("influence", count) as advance:
        for block in blocks:
            solution = estimator.solve(block, options)
            wanted = (len(block.parts), block.samples)
            if solution.by_part.shape != wanted or solution.influence.shape != wanted[1:]:
                raise InputError(
                    f"the estimator {options.name} gives block {block.name} influence of shape "
                    f"{tuple(solution.influence.shape)} and {tuple(solution.by_part.shape)} by "
                    f"part; right would be {wanted[1:]} and {wanted}"
                )
            solutions[block.name] = solution
            advance()
    _note_unconverged(solutions, options)
    return solutions


def workspace(
    groups: dict[str, list[int]], shapes: Sequence[Shape], samples: int, options: EstimatorOptions
) -> int:
    """Bytes that the estimator takes beside the gradients, in the block where it takes most."""
    needed = find(options.name).workspace
    if needed is None:
        return 0
    return max(needed([shapes[row] for row in rows], samples) for rows in groups.values())


def record(solution: Solution) -> BlockRecord:
    """What the artifact keeps of a solution beside the influence."""
    return BlockRecord(
        damping=solution.damping,
        iterations=solution.iterations,
        residual=solution.residual,
        converged=solution.converged,
    )


def _note_unconverged(solutions: dict[str, Solution], options: EstimatorOptions) -> None:
    residuals = {
        name: solution.residual or 0.0
        for name, solution in solutions.items()
        if not solution.converged
    }
    if residuals:
        worst = max(residuals, key=residuals.__getitem__)
        steps = solutions[worst].iterations
        note(
            f"{options.name} did not reach the residual {options.tolerance:g} in {len(residuals)} "
            f"of {len(solutions)} blocks; the largest is {residuals[worst]:.2g}, in {worst}"
            + (
                f" after {steps} iterations: raise them, or the damping"
                if steps
                else ": raise the damping"
            )
        )
