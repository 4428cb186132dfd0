"""What people see: pictures and tables, made from artifacts alone."""

from layerif.report.agreement import agreement_table, plot_agreement
from layerif.report.comparisons import comparison_lines
from layerif.report.plots import plot_allocation, plot_scores
from layerif.report.routing import plot_routing
from layerif.report.tables import (
    allocation_table,
    caveat_lines,
    manifest_lines,
    manifest_table,
    metric_table,
    reported_lines,
    results_table,
    scores_table,
    sweep_lines,
    titled,
)

__all__ = [
    "agreement_table",
    "allocation_table",
    "caveat_lines",
    "comparison_lines",
    "manifest_lines",
    "manifest_table",
    "metric_table",
    "plot_agreement",
    "plot_allocation",
    "plot_routing",
    "plot_scores",
    "reported_lines",
    "results_table",
    "scores_table",
    "sweep_lines",
    "titled",
]
