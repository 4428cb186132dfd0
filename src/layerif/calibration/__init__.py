"""Running calibration text through a model, decoder layer by decoder layer."""

from layerif.calibration.hessians import Factor, Hessians
from layerif.calibration.hidden import HiddenStates, hidden_states
from layerif.calibration.sampling import sampled_chunks
from layerif.calibration.statistics import InputNorms, Statistics
from layerif.calibration.text import calibration_batches, drawn_chunks
from layerif.calibration.walk import Visit, walk

__all__ = [
    "Factor",
    "Hessians",
    "HiddenStates",
    "InputNorms",
    "Statistics",
    "Visit",
    "calibration_batches",
    "drawn_chunks",
    "hidden_states",
    "sampled_chunks",
    "walk",
]
