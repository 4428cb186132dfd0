"""The bridge to EleutherAI's lm-evaluation-harness: its tasks and prompts, our models and results.

lm-eval is an extra (`layerif[eval]`) and is imported where it is used.
"""

from layerif.evaluation.harness.loading import HarnessTasks, load_harness
from layerif.evaluation.harness.running import harness_results

__all__ = ["HarnessTasks", "harness_results", "load_harness"]
