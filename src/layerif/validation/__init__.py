"""Whether a layer score is any good: what pruning each layer really costs, and who foretells it."""

from layerif.validation.agreement import Agreement, agreements
from layerif.validation.ground_truth import GroundTruth, isolated, operating_point

__all__ = ["Agreement", "GroundTruth", "agreements", "isolated", "operating_point"]
