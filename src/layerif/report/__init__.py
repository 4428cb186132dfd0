"""What people see: pictures and tables, made from artifacts alone."""

from layerif.report.comparisons import comparison_lines
from layerif.report.plots import plot_allocation, plot_scores
from layerif.report.tables import (
    allocation_table,
    caveat_lines,
    manifest_lines,
    manifest_table,
    reported_lines,
    results_table,
    scores_table,
    sweep_lines,
    titled,
)

__all__ = [
    "allocation_table",
    "caveat_lines",
    "comparison_lines",
    "manifest_lines",
    "manifest_table",
    "plot_allocation",
    "plot_scores",
    "reported_lines",
    "results_table",
    "scores_table",
    "sweep_lines",
    "titled",
]
