"""PL alpha against the formulas, taken literally, one candidate at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tiny import ARCHITECTURES, tiny_model
from layerif.errors import InputError, NumericalError
from layerif.metrics.measuring import metric_scores
from layerif.metrics.pl_alpha import eigenvalues, hill_alpha
from layerif.model.layers import find_decoder_layers


def literal(spectrum, compat):
    """Plain Python: a loop over candidates, and in each a loop over the tail."""
    e = sorted(float(value) for value in spectrum)
    e = [value for value in e if value > 1e-12 * e[-1]]
    decades = [math.log10(value) for value in e]
    edges = [decades[0] + k * (decades[-1] - decades[0]) / 100 for k in range(100)]
    edges.append(decades[-1])  # exactly: the last bin holds the largest
    counts, _ = np.histogram(decades, bins=edges)
    x = 10 ** edges[int(counts.argmax())]
    lowest = 0.95 * x if compat == "corrected" else math.log10(0.95 * x)
    best = (math.inf, math.nan)
    for i in range(len(e) - 1):
        if not lowest <= e[i] <= 1.5 * x:
            continue
        n = len(e) - i
        alpha = 1 + n / (math.fsum(math.log(v) for v in e[i:]) - n * math.log(e[i]))
        distance = max(
            abs(1 - (e[j] / e[i]) ** (1 - alpha) - (j - i) / n) for j in range(i, len(e))
        )
        if distance < best[0]:
            best = (distance, alpha)
    return best[1]


def weights(shape, seed, decay=0.0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    return weight * torch.arange(1, shape[1] + 1, dtype=torch.float64) ** -decay


@pytest.mark.parametrize("compat", ["corrected", "reference"])
@pytest.mark.parametrize("decay", [0.0, 0.4, 1.5])
@pytest.mark.parametrize("shape", [(40, 40), (25, 60), (90, 30)])
def test_all_candidates_at_once_are_the_loop(shape, decay, compat):
    for seed in range(4):
        weight = weights(shape, seed, decay)
        spectrum = torch.linalg.svdvals(weight).square().flip(0)
        expected = literal(spectrum.tolist(), compat)
        assert hill_alpha(spectrum, compat) == pytest.approx(expected, rel=1e-10)
        assert hill_alpha(eigenvalues(weight), compat) == pytest.approx(expected, rel=1e-8)


def test_candidates_in_several_blocks():
    # Would see: a block that starts at the wrong eigenvalue, or forgets the tails of its rows.
    spectrum = torch.linalg.svdvals(weights((700, 700), 0)).square().flip(0)
    assert hill_alpha(spectrum, "reference") == pytest.approx(
        literal(spectrum.tolist(), "reference"), rel=1e-10
    )


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=40, unique=True))
@settings(max_examples=100, deadline=None)
def test_any_spectrum_is_the_loop(exponents):
    spectrum = torch.tensor(sorted(10**value for value in exponents), dtype=torch.float64)
    decades = spectrum.log10().numpy()
    if np.diff(decades).min() < 1e-6:
        return  # as good as equal: round-off decides in which bin they are
    edges = np.linspace(decades[0], decades[-1], 101)
    if np.abs(decades[1:-1, None] - edges).min(initial=1) < 1e-9:
        return
    for compat in ("corrected", "reference"):
        expected = literal(spectrum.tolist(), compat)
        assert hill_alpha(spectrum, compat) == pytest.approx(expected, rel=1e-7)


def test_the_exponent_of_a_power_law_is_found():
    # Quantiles of a density ~ x^-alpha from 1 on; a histogram peaks where the tail begins.
    for alpha in (2.0, 3.5, 6.0):
        u = (np.arange(20_000) + 0.5) / 20_000
        spectrum = torch.tensor((1 - u) ** (-1 / (alpha - 1)))
        assert hill_alpha(spectrum) == pytest.approx(alpha, rel=0.02)


def test_the_bound_of_the_reference_lets_smaller_eigenvalues_in():
    found = [
        (hill_alpha(s), hill_alpha(s, "reference"))
        for s in (eigenvalues(weights((30, 30), seed, 0.3)) for seed in range(20))
    ]
    assert any(abs(a - b) > 1e-3 for a, b in found)


def test_scale_and_transposition_change_nothing():
    weight = weights((30, 50), 3)
    alpha = hill_alpha(eigenvalues(weight))
    assert hill_alpha(eigenvalues(weight.T)) == pytest.approx(alpha, rel=1e-9)
    assert hill_alpha(eigenvalues(1e-3 * weight)) == pytest.approx(alpha, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_eigenvalues_are_float64_whatever_the_weight(dtype):
    weight = weights((20, 33), 1).to(dtype)
    expected = torch.linalg.svdvals(weight.double()).square().flip(0)
    found = eigenvalues(weight)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13 * float(expected.max()))


def test_directions_that_a_weight_lacks_are_dropped():
    # Would see: round-off of the zero eigenvalues as the smallest of a tail of 12 decades.
    low_rank = weights((40, 8), 0) @ weights((8, 40), 1)
    kept = torch.linalg.svdvals(low_rank).square().flip(0)[-8:]
    assert hill_alpha(eigenvalues(low_rank)) == pytest.approx(
        literal(kept.tolist(), "corrected"), rel=1e-8
    )


def test_what_has_no_tail_is_refused():
    for weight, says in [
        (torch.zeros(4, 4), "0 eigenvalues"),
        (torch.ones(1, 9), "1 eigenvalues"),
        (2 * torch.eye(6), "all alike"),
    ]:
        with pytest.raises(InputError, match=says):
            hill_alpha(eigenvalues(weight))
    with pytest.raises(NumericalError, match="not finite"):
        eigenvalues(torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(InputError, match="'authors'"):
        hill_alpha(torch.arange(1.0, 9.0), "authors")


@pytest.mark.parametrize("compat", ["corrected", "reference"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_have_the_mean_of_their_projections(architecture, compat):
    model = tiny_model(architecture)
    scores = metric_scores(model, "pl_alpha", compat=compat)
    projections = find_decoder_layers(model).projections
    assert [p.module for p in scores.projections] == [p.key for p in projections]
    expected = [
        literal(np.linalg.svd(p.weight.double().numpy(), compute_uv=False) ** 2, compat)
        for p in projections
    ]
    np.testing.assert_allclose([p.score for p in scores.projections], expected, rtol=1e-7)
    for layer, value in enumerate(scores.scores):
        own = [a for a, p in zip(expected, projections, strict=True) if p.layer == layer]
        assert value == pytest.approx(sum(own) / len(own), rel=1e-7)
    assert scores.calibration is None
    assert scores.options == {"compat": compat}


def test_a_projection_without_a_tail_is_named():
    model = tiny_model()
    find_decoder_layers(model).of(1)[4].weight.zero_()
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.gate_proj: "):
        metric_scores(model, "pl_alpha")
