"""layerif: how well each decoder layer of a language model serves a task, and budgets spent by it.

scores = layerif.score(model, tokenizer, train, validation)
plan = layerif.allocate_sparsity(scores, sparsity=0.5)
layerif.prune(model, plan, tokenizer=tokenizer, calibration=texts)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerif.artifacts import Allocation as Allocation
    from layerif.artifacts import LayerScores as LayerScores
    from layerif.artifacts import MetricScores as MetricScores
    from layerif.artifacts import Results as Results
    from layerif.compress.pruning import prune as prune
    from layerif.compress.pruning import save_pruned as save_pruned
    from layerif.data import Example as Example
    from layerif.data import Task as Task
    from layerif.data import load_calibration as load_calibration
    from layerif.data import load_corpus as load_corpus
    from layerif.data import load_task as load_task
    from layerif.errors import LayerifError as LayerifError
    from layerif.evaluation import compare as compare
    from layerif.evaluation import harness_results as harness_results
    from layerif.evaluation import load_harness as load_harness
    from layerif.evaluation.evaluate import evaluate as evaluate
    from layerif.finetuning import FinetuneOptions as FinetuneOptions
    from layerif.finetuning.finetune import finetune as finetune
    from layerif.influence import score as score
    from layerif.metrics import metric_scores as metric_scores
    from layerif.metrics import register_metric as register_metric
    from layerif.model import open_model as open_model
    from layerif.plans.allocate import allocate_experts as allocate_experts
    from layerif.plans.allocate import allocate_ranks as allocate_ranks
    from layerif.plans.allocate import allocate_sparsity as allocate_sparsity
    from layerif.plans.score_files import read_scores as read_scores

# Where each name lives; imported on first use, so that `import layerif` stays fast.
_HOMES = {
    "Allocation": "artifacts",
    "Example": "data",
    "FinetuneOptions": "finetuning",
    "LayerScores": "artifacts",
    "LayerifError": "errors",
    "MetricScores": "artifacts",
    "Results": "artifacts",
    "Task": "data",
    "allocate_experts": "plans.allocate",
    "allocate_ranks": "plans.allocate",
    "allocate_sparsity": "plans.allocate",
    "compare": "evaluation",
    "evaluate": "evaluation",
    "finetune": "finetuning",
    "harness_results": "evaluation",
    "load_calibration": "data",
    "load_corpus": "data",
    "load_harness": "evaluation",
    "load_task": "data",
    "metric_scores": "metrics",
    "open_model": "model",
    "prune": "compress.pruning",
    "read_scores": "plans.score_files",
    "register_metric": "metrics",
    "save_pruned": "compress.pruning",
    "score": "influence",
}
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
