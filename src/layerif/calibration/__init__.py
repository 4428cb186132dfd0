"""Running calibration text through a model, decoder layer by decoder layer."""

from layerif.calibration.statistics import InputNorms
from layerif.calibration.text import calibration_batches
from layerif.calibration.walk import Visit, walk

__all__ = ["InputNorms", "Visit", "calibration_batches", "walk"]
