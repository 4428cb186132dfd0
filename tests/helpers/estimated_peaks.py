"""Estimated and measured bytes, weights included, of each kind of work on a random model.

By formula; of a whole run of scoring (`doctor`), as `examine` finds it by running one batch.

python -m helpers.estimated_peaks VOCABULARY TOKENS LAYERS
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from helpers.tiny import tiny_tokenizer
from layerif.calibration.statistics import InputNorms
from layerif.calibration.walk import walk
from layerif.compress.pruning.compressor import PruningCompressor
from layerif.compress.pruning.options import MethodOptions
from layerif.data import Example
from layerif.data.batching import Encoded, collate
from layerif.estimates import memory
from layerif.finetuning.finetune import BYTES_PER_PARAMETER, with_new_adapter
from layerif.finetuning.options import FinetuneOptions
from layerif.influence.doctor import examine
from layerif.influence.gradients import PerSampleGradients, frozen
from layerif.influence.scoring import score
from layerif.influence.subspaces.lora import FreshLora
from layerif.likelihood import token_losses
from layerif.model.layers import find_decoder_layers
from layerif.search.options import SearchOptions
from layerif.search.rounds import MARGINAL
from layerif.search.slopes import slopes
from layerif.search.sparsity import SparsityKind

LENGTH = 256


def main(vocabulary: int, tokens: int, layers: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    found = find_decoder_layers(model)
    rows = torch.randint(vocabulary, (tokens // LENGTH, LENGTH)).tolist()
    items = [Encoded(row, ids, 1) for row, ids in enumerate(rows)]
    batch = collate(items, device=torch.device("cpu"))
    matrices = FreshLora(8, 16.0, 0).matrices(found.projections)
    weights = sum(parameter.nbytes for parameter in model.parameters())

    @torch.inference_mode()
    def evaluate():
        token_losses(model, batch)

    def gradients():
        with frozen(model), PerSampleGradients(model, found.projections, matrices) as per_sample:
            per_sample(batch)

    def prune():
        for visit in walk(model, found, [batch.inputs]):
            visit.observe(InputNorms([p for p in found.projections if p.layer == visit.index]))

    def marginal():
        with PruningCompressor.held(
            model, found, [batch.inputs], MethodOptions(method="wanda")
        ) as compressor:
            kind = SparsityKind.among(found, 0.5, SearchOptions())
            around = kind.around(kind.start())
            levels = kind.levels(kind.start())
            changes = compressor.at(levels, lambda row, unit: unit.change(*around[row]))
            slopes(model, changes, items, batch_tokens=tokens)

    wrapped_losses = {}

    def finetune():
        wrapped, _ = with_new_adapter(model, None, FinetuneOptions())
        wrapped.train()
        wrapped_losses["count"] = wrapped.get_nb_trainable_parameters()[0]
        optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad])
        token_losses(model, batch, through=wrapped).mean().backward()
        optimizer.step()

    stored = len(items) * sum(matrix.size for matrix in matrices) * 4
    held = MARGINAL.held * sum(projection.weight.nbytes for projection in found.projections)
    plan = {
        "evaluate": (evaluate, "forward", lambda: 0),
        "score": (gradients, "backward", lambda: stored),
        "prune": (prune, "walk", lambda: tokens * config.hidden_size * 4),
        "marginal": (marginal, "inputs", lambda: held),
        "finetune": (finetune, "inputs", lambda: BYTES_PER_PARAMETER * wrapped_losses["count"]),
    }
    # One token a byte; all but the first have a loss.
    samples = [Example("x", f" {row}".ljust(LENGTH - 1, ".")) for row in range(tokens // LENGTH)]
    run = {"batch_tokens": tokens, "max_length": LENGTH}
    tokenizer = tiny_tokenizer()
    told = {}
    with torch.inference_mode():
        model(torch.tensor([[1, 2, 3]]))
    for name, (work, how, kept) in plan.items():
        peak = peak_of(work)
        told[name] = [memory(model, how, tokens, kept=kept()) + weights, peak + weights]
    model = AutoModelForCausalLM.from_config(config).eval()  # without adapters
    about = examine(model, tokenizer, samples, samples, **run).estimate
    peak = peak_of(lambda: score(model, tokenizer, samples, samples, keep="memory", **run))
    told["doctor"] = [about.weights + about.gradients + about.activations, peak + weights]
    for name, (estimated, measured) in told.items():
        print(f"{name:9} estimated {estimated / 1e9:.2f} GB, measured {measured / 1e9:.2f} GB")
    print(json.dumps(told))


def peak_of(work: Callable[[], None]) -> int:
    """By how many bytes the process grows at the most."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # a peak of its own
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if field in x)
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
