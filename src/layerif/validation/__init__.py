"""Whether a layer score is any good: what pruning each layer really costs, and who foretells it."""

from layerif.validation.agreement import advice, agreements
from layerif.validation.ground_truth import isolated, operating_point

__all__ = ["advice", "agreements", "isolated", "operating_point"]
