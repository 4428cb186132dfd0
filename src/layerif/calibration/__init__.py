"""Running calibration text through a model, decoder layer by decoder layer."""
