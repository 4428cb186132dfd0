"""A tiny model that has learnt something, and text for it, for tests at the operating point."""

from __future__ import annotations

from functools import cache

import torch

from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.data import Corpus
from layerif.data.chunks import cut


def corpus(sentences: int = 400) -> Corpus:
    """Sentences of some regularity and some surprise; the last fifth is for evaluation."""
    animals = ("otter", "heron", "badger", "newt", "magpie")
    places = ("river", "wood", "field", "marsh")
    documents = [
        f"The {animals[i * i % 5]} number {i} lives by the {places[i * 7 % 4]}, and counts {i * 3}."
        for i in range(sentences)
    ]
    border = sentences * 4 // 5
    return Corpus("animals", documents[:border], documents[border:], "\n")


@cache
def _trained() -> dict[str, torch.Tensor]:
    model = tiny_model()
    items = cut(tiny_tokenizer(), corpus().text("calibration"), 32)
    ids = torch.tensor([item.input_ids for item in items])
    generator = torch.Generator().manual_seed(3)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        rows = ids[torch.randint(len(ids), (16,), generator=generator)]
        loss = model(rows, labels=rows).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def trained_model(dtype: torch.dtype = torch.float32):
    """A Llama of three layers after 150 steps on the corpus' calibration part."""
    model = tiny_model()
    model.load_state_dict(_trained())
    return model.to(dtype).eval()
