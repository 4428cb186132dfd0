"""The folders that layerif writes as one result, and the files that each consists of."""

from __future__ import annotations

from pathlib import Path

from layerif.artifacts.finetuning import FINETUNING_FILE
from layerif.artifacts.folder import MANIFEST_FILE
from layerif.artifacts.gradients import GRADIENTS_FILE, ROWS_FILE, VECTORS_FILE
from layerif.artifacts.scores import INFLUENCE_FILE, SCORES_FILE
from layerif.core.files import RECIPE_FILE, Kind, is_recipe

CARD_FILE = "README.md"
# What transformers writes for a model and its tokenizer.
_OF_MODELS = """
config.json generation_config.json configuration_*.py modeling_*.py tokenization_*.py
model.safetensors model-?????-of-?????.safetensors model.safetensors.index.json
tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json
chat_template.jinja chat_template.json vocab*.json vocab*.txt merges.txt normalizer.json
*.tiktoken tokenizer.model* sentencepiece*.model spiece.model spm*.model
"""
MODEL_FILES = tuple(_OF_MODELS.split())
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
ROUTING_FILES = ("routing.json", "routing.png", "routing.svg")


def _is_card(path: Path) -> bool:
    """A model card as libraries write it begins with its facts in YAML."""
    with path.open("rb") as file:
        return file.read(4) == b"---\n"


# What layerif writes beside a model or an adapter, which a person may have written too.
BESIDE = {CARD_FILE: _is_card, RECIPE_FILE: is_recipe}
SCORES = Kind("layerif.scores", SCORES_FILE, (INFLUENCE_FILE,), whole=False)
GRADIENTS = Kind("layerif.gradients", GRADIENTS_FILE, (ROWS_FILE, VECTORS_FILE))
PRUNED = Kind("layerif.manifest", MANIFEST_FILE, (*MODEL_FILES, *BESIDE), BESIDE)
QUANTIZED = Kind("layerif.quantized", MANIFEST_FILE, (*MODEL_FILES, *BESIDE), BESIDE)
DROPPED = Kind("layerif.dropped", MANIFEST_FILE, (*MODEL_FILES, *BESIDE), BESIDE)
ADAPTER = Kind(
    "layerif.finetuning", FINETUNING_FILE, (*ADAPTER_FILES, *ROUTING_FILES, *BESIDE), BESIDE
)
# A plain model in the cache, which has no format of ours.
CONVERTED = Kind("", "config.json", MODEL_FILES)
