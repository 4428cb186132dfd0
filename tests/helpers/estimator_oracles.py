"""Influence by explicit inverses, and what tests of estimators share."""

from __future__ import annotations

import numpy as np
import torch

from layerif.influence.estimators.block import Block, Part
from layerif.influence.estimators.registry import ESTIMATORS
from layerif.influence.options import SolveOptions


def draw(samples, size, seed=0, *, rank=None, scale=1.0):
    """G (n, d), of a rank where one is given, and v (d,)."""
    generator = np.random.default_rng(seed)
    gradients = generator.normal(size=(samples, size))
    if rank is not None:
        gradients = generator.normal(size=(samples, rank)) @ generator.normal(size=(rank, size))
    return scale * gradients, scale * generator.normal(size=size)


def solve(name, gradients, v, *, factor=0.1, value=None, shape=None, factors=None, **options):
    made = Block.of(
        "b", torch.as_tensor(gradients), torch.as_tensor(v), shape=shape, factors=factors
    )
    return solution(made, name, damping=factor, damping_value=value, **options)


def solution(made, name, **options):
    """The solution of a block, one damping alone."""
    chosen = SolveOptions(estimator=name, **options)
    (found,) = ESTIMATORS.find(name).solutions(made, chosen.dampings, chosen)
    return found


def rule(gradients, factor=0.1):
    return factor * np.mean((gradients**2).sum(1)) / gradients.shape[1]


def close(found, expected, tolerance=1e-9):
    """Within `tolerance` of the largest influence."""
    gap = np.abs(np.asarray(found) - expected).max()
    assert gap <= tolerance * np.abs(expected).max(), gap / np.abs(expected).max()


def dense_datainf(gradients, v, ridge):
    """The mean of (g g^T + lambda I)^-1 taken literally."""
    eye = np.eye(len(v))
    inverses = [np.linalg.inv(np.outer(g, g) + ridge * eye) for g in gradients]
    return gradients @ np.mean(inverses, axis=0) @ v


def double_loop_datainf(gradients, v, ridge):
    """DataInf as its paper writes it: for each sample a sum over samples."""
    samples = len(gradients)
    influence = np.zeros(samples)
    for k in range(samples):
        for i in range(samples):
            weight = (v @ gradients[i]) / (ridge + gradients[i] @ gradients[i])
            share = v @ gradients[k] - weight * (gradients[i] @ gradients[k])
            influence[k] += share / (samples * ridge)
    return influence


def dense_exact(gradients, v, ridge):
    """v^T H^-1 g by an explicit inverse, its rounding taken out in extended precision."""
    return gradients @ dense_direction(gradients, v, ridge)


def dense_direction(gradients, v, ridge):
    wide = gradients.astype(np.longdouble)
    hessian = wide.T @ wide / len(wide) + np.longdouble(ridge) * np.eye(len(v))
    inverse = np.linalg.inv(hessian.astype(np.float64))
    x = inverse @ v.astype(np.longdouble)
    for _ in range(6):
        x = x + inverse @ (v - hessian @ x)
    return x


def dense_ekfac(gradients, v, ridge, shape, factors=None):
    """The Kronecker product of the eigenbases and the whole matrix U (Lambda + lambda) U^T."""
    matrices = gradients.reshape(-1, *shape)
    inputs, outputs = factors or (
        np.mean([m.T @ m for m in matrices], axis=0),
        np.mean([m @ m.T for m in matrices], axis=0),
    )
    basis = np.kron(np.linalg.eigh(outputs)[1], np.linalg.eigh(inputs)[1])
    eigenvalues = np.mean((gradients @ basis) ** 2, axis=0)
    hessian = basis @ np.diag(eigenvalues) @ basis.T + ridge * np.eye(len(v))
    return gradients @ np.linalg.inv(hessian) @ v


DENSE = {
    "datainf": dense_datainf,
    "exact": dense_exact,
    "cg": dense_exact,
    "grad_dot": lambda gradients, v, _ridge: gradients @ v,
    "cosine": lambda gradients, v, _ridge: (
        gradients @ v / (np.linalg.norm(v) * np.linalg.norm(gradients, axis=1))
    ),
}

OUT, IN = 4, 3


def layer_block(sizes, samples=6, shapes=None):
    """A block of several parts, and its gradients and v as one matrix and one vector."""
    gradients, v = draw(samples, sum(sizes))
    ends = np.cumsum(sizes)[:-1]
    shapes = shapes or [(size, 1) for size in sizes]
    parts = tuple(
        Part(f"p{i}", torch.from_numpy(own), shape)
        for i, (own, shape) in enumerate(zip(np.split(v, ends), shapes, strict=True))
    )
    pieces = tuple(torch.from_numpy(piece) for piece in np.split(gradients, ends, axis=1))
    return Block("layer", parts, pieces), gradients, v
