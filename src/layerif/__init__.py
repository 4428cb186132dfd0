"""layerif: how well each decoder layer of a language model serves a task, and budgets spent by it.

scores = layerif.score(model, tokenizer, train, validation)
plan = layerif.allocate_sparsity(scores, sparsity=0.5)
layerif.prune(model, plan, tokenizer=tokenizer, calibration=texts)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerif.artifacts import LayerScores as LayerScores
    from layerif.artifacts import MetricScores as MetricScores
    from layerif.artifacts import Plan as Plan
    from layerif.artifacts import Results as Results
    from layerif.compress.depth.dropping import drop_layers as drop_layers
    from layerif.compress.pruning.registry import register_pruner as register_pruner
    from layerif.compress.pruning.runner import prune as prune
    from layerif.compress.pruning.saving import save_pruned as save_pruned
    from layerif.compress.quantization.registry import register_quantizer as register_quantizer
    from layerif.compress.quantization.runner import quantize as quantize
    from layerif.compress.quantization.saving import save_quantized as save_quantized
    from layerif.data import Corpus as Corpus
    from layerif.data import Example as Example
    from layerif.data import Task as Task
    from layerif.data import load_calibration as load_calibration
    from layerif.data import load_corpus as load_corpus
    from layerif.data import load_task as load_task
    from layerif.data.registry import register_corpus as register_corpus
    from layerif.data.registry import register_task as register_task
    from layerif.errors import LayerifError as LayerifError
    from layerif.evaluation.comparison import compare as compare
    from layerif.evaluation.evaluate import evaluate as evaluate
    from layerif.evaluation.harness import harness_results as harness_results
    from layerif.evaluation.harness import load_harness as load_harness
    from layerif.export.exporting import export_plan as export_plan
    from layerif.export.lora import export_lora as export_lora
    from layerif.export.registry import register_export as register_export
    from layerif.finetuning.finetune import finetune as finetune
    from layerif.finetuning.options import FinetuneOptions as FinetuneOptions
    from layerif.influence.collecting import collect as collect
    from layerif.influence.estimators.base import Solution as Solution
    from layerif.influence.estimators.registry import register_estimator as register_estimator
    from layerif.influence.options import ScoreOptions as ScoreOptions
    from layerif.influence.scoring import score as score
    from layerif.influence.solving import solve as solve
    from layerif.influence.store import Gradients as Gradients
    from layerif.influence.subspaces.registry import register_subspace as register_subspace
    from layerif.metrics.base import MetricValues as MetricValues
    from layerif.metrics.measuring import metric_scores as metric_scores
    from layerif.metrics.registry import register_metric as register_metric
    from layerif.model.opening import open_model as open_model
    from layerif.plans.allocate import allocate as allocate
    from layerif.plans.allocate import allocate_experts as allocate_experts
    from layerif.plans.allocate import allocate_ranks as allocate_ranks
    from layerif.plans.allocate import allocate_sparsity as allocate_sparsity
    from layerif.plans.kinds.registry import register_kind as register_kind
    from layerif.plans.named import register_plan as register_plan
    from layerif.plans.score_files import read_scores as read_scores
    from layerif.search.options import SearchOptions as SearchOptions
    from layerif.search.registry import register_strategy as register_strategy
    from layerif.search.searching import search_plan as search_plan
    from layerif.workflows.run import Run as Run

# The names of each module; imported on first use, so that `import layerif` stays fast.
_NAMES = {
    "artifacts": "LayerScores MetricScores Plan Results",
    "compress.depth.dropping": "drop_layers",
    "compress.pruning.registry": "register_pruner",
    "compress.pruning.runner": "prune",
    "compress.pruning.saving": "save_pruned",
    "compress.quantization.registry": "register_quantizer",
    "compress.quantization.runner": "quantize",
    "compress.quantization.saving": "save_quantized",
    "data": "Corpus Example Task load_calibration load_corpus load_task",
    "data.registry": "register_corpus register_task",
    "errors": "LayerifError",
    "evaluation.comparison": "compare",
    "evaluation.evaluate": "evaluate",
    "evaluation.harness": "harness_results load_harness",
    "export.exporting": "export_plan",
    "export.lora": "export_lora",
    "export.registry": "register_export",
    "finetuning.finetune": "finetune",
    "finetuning.options": "FinetuneOptions",
    "influence.collecting": "collect",
    "influence.estimators.base": "Solution",
    "influence.estimators.registry": "register_estimator",
    "influence.options": "ScoreOptions",
    "influence.scoring": "score",
    "influence.solving": "solve",
    "influence.store": "Gradients",
    "influence.subspaces.registry": "register_subspace",
    "metrics.base": "MetricValues",
    "metrics.measuring": "metric_scores",
    "metrics.registry": "register_metric",
    "model.opening": "open_model",
    "plans.allocate": "allocate allocate_experts allocate_ranks allocate_sparsity",
    "plans.kinds.registry": "register_kind",
    "plans.named": "register_plan",
    "plans.score_files": "read_scores",
    "search.options": "SearchOptions",
    "search.registry": "register_strategy",
    "search.searching": "search_plan",
    "workflows.run": "Run",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("layerif")
    if name not in _HOMES:
        raise AttributeError(f"module 'layerif' has no attribute {name!r}")
    return getattr(importlib.import_module(f"layerif.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
