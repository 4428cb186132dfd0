"""Running calibration text through a model, decoder layer by decoder layer."""

from layerif.calibration.statistics import InputNorms
from layerif.calibration.walk import Visit, walk

__all__ = ["InputNorms", "Visit", "walk"]
