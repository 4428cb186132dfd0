"""Whether a layer score is any good: what a change of each layer really does, and who foretells it.

The changes: weights are pruned, or adapters trained.
"""

from layerif.validation.capacity import capacity
from layerif.validation.correlation import advice, agreements
from layerif.validation.ground_truth import check_point, isolated, operating_point

__all__ = ["advice", "agreements", "capacity", "check_point", "isolated", "operating_point"]
