"""Comparisons in plain language."""

from __future__ import annotations

import math
from collections.abc import Sequence

from layerif.artifacts import Comparison
from layerif.artifacts.results import SIGNIFICANCE
from layerif.report.tables import titled

_WORDS = {"accuracy": "accuracy", "perplexity": "perplexity", "completion_loss": "answer loss"}


def comparison_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """One line a comparison: both figures, the difference, its interval, p, and what that says.

    p is the adjusted one, since that is what decides; a last line says so where there are several.
    """
    lines = [_line(comparison) for comparison in comparisons]
    if len(lines) > 1:
        lines.append(
            f"Intervals are 95 % of each difference; p is adjusted for {len(lines)} comparisons "
            "(Holm)."
        )
    seeds = min((each.seeds for each in comparisons if each.seeds is not None), default=None)
    # Fewer than this many signs cannot come out below 0.05, were they all alike.
    needed = 2 + math.floor(math.log2(max(1, len(comparisons)) / SIGNIFICANCE))
    if seeds is not None and seeds < needed:
        lines.append(
            f"{seeds} seed{'s' if seeds > 1 else ''} cannot show a difference between plans: p is "
            f"at least {2.0 ** (1 - seeds):.2g} before it is adjusted. {needed} seeds can."
        )
    return lines


def _line(found: Comparison) -> str:
    if found.metric == "accuracy":
        first, second = f"{found.value:.1%}", f"{found.baseline_value:.1%}"
        form, scale, unit = "{:+.1f}", 100, " points"
    else:
        digits = 2 if found.metric == "perplexity" else 3
        first, second = f"{found.value:.{digits}f}", f"{found.baseline_value:.{digits}f}"
        form, scale, unit = f"{{:+.{digits}f}}", 1, ""
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f" [{form.format(scale * found.low)}, {form.format(scale * found.high)}]"
    p = "p < 0.001" if found.p_holm < 0.001 else f"p = {found.p_holm:.2g}"
    figure = f"{titled(found.name, found.scoring)} {_WORDS[found.metric]}"
    return (
        f"{figure}: {found.model} {first} against {found.baseline} "
        f"{second}: {form.format(scale * found.difference)}{unit}{interval}, {p}: {_verdict(found)}"
    )


def _verdict(found: Comparison) -> str:
    if found.inside_noise:
        return "inside the noise"
    return "better" if (found.difference > 0) == (found.metric == "accuracy") else "worse"
