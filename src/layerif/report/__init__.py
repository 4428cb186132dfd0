"""What people see: pictures and tables, made from artifacts alone."""

from layerif.report.cards import adapter_card, pruned_card
from layerif.report.comparisons import comparison_lines
from layerif.report.correlation import agreement_table, plot_agreement
from layerif.report.finetuning import finetuning_table
from layerif.report.plots import leave_picture, plot_metric, plot_plan, plot_scores
from layerif.report.routing import plot_routing
from layerif.report.seeds import seeds_table
from layerif.report.tables import (
    caveat_lines,
    manifest_lines,
    manifest_table,
    metric_table,
    plan_table,
    reported_lines,
    results_table,
    scores_table,
    sweep_lines,
    titled,
)

__all__ = [
    "adapter_card",
    "agreement_table",
    "caveat_lines",
    "comparison_lines",
    "finetuning_table",
    "leave_picture",
    "manifest_lines",
    "manifest_table",
    "metric_table",
    "plan_table",
    "plot_agreement",
    "plot_metric",
    "plot_plan",
    "plot_routing",
    "plot_scores",
    "pruned_card",
    "reported_lines",
    "results_table",
    "scores_table",
    "seeds_table",
    "sweep_lines",
    "titled",
]
