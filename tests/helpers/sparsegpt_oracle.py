"""SparseGPT by its own definition: an explicit inverse at every step."""

from __future__ import annotations

import torch

from layerif.compress.pruning.sparsegpt import BLOCK


def oracle(weight, hessian, zeros, *, pattern=None, block=BLOCK, damping=0.01):
    """Column after column: the optimal update of what is to the right, from H[j:, j:] alone."""
    rows, columns = weight.shape
    work, hessian = weight.clone(), hessian.clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    hessian += damping * hessian.diagonal().mean() * torch.eye(columns, dtype=torch.float64)

    def inverse(column):
        return torch.linalg.inv(hessian[column:, column:])

    def saliency(row, column):
        if work[row, column] == 0:
            return -2.0
        if dead[column]:
            return -1.0
        return (work[row, column] ** 2 / inverse_corner[column]).item()

    inverse_corner = [inverse(j)[0, 0] for j in range(columns)]
    gone = torch.zeros_like(work, dtype=torch.bool)
    left = zeros
    for begin in range(0, columns, block):
        end = min(begin + block, columns)
        if pattern is None:
            dead_here, dead_left = int(dead[begin:end].sum()), int(dead[begin:].sum())
            if dead_left * rows >= left:
                count = round(left * dead_here / dead_left) if dead_left else 0
            else:
                live_left = columns - begin - dead_left
                share = (end - begin - dead_here) / live_left if live_left else 0
                count = dead_here * rows + round((left - dead_left * rows) * share)
            order = sorted(
                ((saliency(i, j), i, j) for i in range(rows) for j in range(begin, end)),
            )
            for _, i, j in order[:count]:
                gone[i, j] = True
        for j in range(begin, end):
            if pattern is not None and j % pattern.group == 0:
                for i in range(rows):
                    order = sorted((saliency(i, k), k) for k in range(j, j + pattern.group))
                    for _, k in order[: pattern.group - pattern.keep]:
                        gone[i, k] = True
            step = inverse(j)
            for i in range(rows):
                if gone[i, j]:
                    work[i, j:] -= work[i, j] / step[0, 0] * step[0]
                    work[i, j] = 0
        left = max(left - int((work[:, begin:end] == 0).sum()), 0)
    return work
