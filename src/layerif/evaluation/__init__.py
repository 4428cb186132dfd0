"""What a model is worth: perplexity on text, accuracy on tasks, and how sure a difference is."""

from layerif.evaluation.accuracy import task_measurement
from layerif.evaluation.comparison import compare
from layerif.evaluation.evaluate import check_same_items, check_sources, evaluate, sparsity_of
from layerif.evaluation.extraction import extract_answer
from layerif.evaluation.generation import generated_accuracy
from layerif.evaluation.harness import HarnessTasks, harness_results, load_harness
from layerif.evaluation.perplexity import perplexity

__all__ = [
    "HarnessTasks",
    "check_same_items",
    "check_sources",
    "compare",
    "evaluate",
    "extract_answer",
    "generated_accuracy",
    "harness_results",
    "load_harness",
    "perplexity",
    "sparsity_of",
    "task_measurement",
]
