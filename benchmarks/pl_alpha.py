"""PL alpha of every projection, against the loop over candidates that the published code runs.

The loop is written from the formulas in AlphaPruning (arXiv 2410.10912): singular values of the
weight, then for each candidate beginning of the tail one Hill estimate and one Kolmogorov-Smirnov
distance, with the authors' lower bound. Both sides are timed projection by projection in one
process, in turn, and must agree.

    OMP_NUM_THREADS=1 python benchmarks/pl_alpha.py
"""

from __future__ import annotations

import argparse
import platform
import time

import torch

from layerif.metrics.pl_alpha import eigenvalues, hill_alpha
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import open_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    options = parser.parse_args()
    model, _ = open_model(options.model)
    projections = find_decoder_layers(model).projections
    print(
        f"{options.model}, {len(projections)} projections, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {platform.machine()}"
    )
    ours(projections[0].weight)  # not counted: first calls
    loop(projections[0].weight)
    spectra = {"loop": 0.0, "ours": 0.0}
    tails = {"loop": 0.0, "ours": 0.0}
    worst, changed = 0.0, 0
    for projection in projections:
        values = {}
        for name, side in (("loop", loop), ("ours", ours)):
            values[name], spectrum, tail = side(projection.weight)
            spectra[name] += spectrum
            tails[name] += tail
        worst = max(worst, abs(values["loop"] - values["ours"]))
        corrected = hill_alpha(eigenvalues(projection.weight))
        changed += int(abs(corrected - values["ours"]) > options.tolerance)
    for name in ("loop", "ours"):
        print(
            f"{name}: spectra {spectra[name]:7.2f} s, tails {tails[name]:7.2f} s, "
            f"in all {spectra[name] + tails[name]:7.2f} s"
        )
    whole = (spectra["loop"] + tails["loop"]) / (spectra["ours"] + tails["ours"])
    print(
        f"ratio: spectra {spectra['loop'] / spectra['ours']:.1f}, "
        f"tails {tails['loop'] / tails['ours']:.1f}, in all {whole:.1f}"
    )
    print(f"largest difference {worst:.1e}; the corrected bound changes {changed} of them")
    if worst > options.tolerance:
        raise SystemExit(f"the two differ by more than {options.tolerance:g}")


def ours(weight: torch.Tensor) -> tuple[float, float, float]:
    """The value, seconds up to the spectrum, and seconds after it."""
    began = time.perf_counter()
    spectrum = eigenvalues(weight)
    between = time.perf_counter()
    value = hill_alpha(spectrum, "reference")
    return value, between - began, time.perf_counter() - between


def loop(weight: torch.Tensor) -> tuple[float, float, float]:
    """The same, candidate by candidate."""
    began = time.perf_counter()
    spectrum = torch.linalg.svdvals(weight.double()).square().sort().values
    between = time.perf_counter()
    e = spectrum[spectrum > 1e-12 * spectrum.max()]
    logs = torch.log(e)
    decades = torch.log10(e)
    low, high = decades.min(), decades.max()
    counts = torch.histc(decades, 100, min=low.item(), max=high.item())
    edges = torch.linspace(low.item(), high.item(), 101, dtype=torch.float64)
    peak = 10 ** edges[counts.argmax()]
    lowest, highest = torch.log10(0.95 * peak), 1.5 * peak
    count = len(e)
    alphas = torch.zeros(count - 1, dtype=torch.float64)
    distances = torch.ones(count - 1, dtype=torch.float64)
    for i, start in enumerate(e[:-1]):
        if start < lowest:
            continue
        if start > highest:
            break
        n = float(count - i)
        steps = torch.arange(n, dtype=torch.float64)
        alphas[i] = alpha = 1 + n / (torch.sum(logs[i:]) - n * logs[i])
        if alpha > 1:
            fitted = 1 - (e[i:] / start) ** (1 - alpha)
            distances[i] = torch.max(torch.abs(fitted - steps / n))
    value = float(alphas[distances.argmin()])
    return value, between - began, time.perf_counter() - between


if __name__ == "__main__":
    main()
