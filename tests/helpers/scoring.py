"""Samples, influence of them on the spot, and its two oracles: autograd and published DataInf."""

from __future__ import annotations

import torch

from helpers.estimator_oracles import double_loop_datainf, rule
from helpers.tiny import tiny_tokenizer
from layerif.artifacts import Fingerprint
from layerif.data.base import Example
from layerif.influence.scoring import score
from layerif.influence.subspaces.lora import FreshLora
from layerif.model.layers import find_decoder_layers

RANK, ALPHA, SEED, DAMPING = 4, 8.0, 3, 0.1
# Of steps that a test keeps.
WANTED = Fingerprint(model="m", data="d", options={})


def examples(count, salt):
    words = ["keys", "dogs", "the old cabinet", "a", "houses on the hill", "it", "two of them"]
    return [
        Example(
            f"{salt} {i}: {words[i % 7]} near {words[(3 * i + 1) % 7]}",
            f" is {words[(i * i) % 7]}" + "." * (i % 3 + 1),
        )
        for i in range(count)
    ]


TRAIN, VALIDATION = examples(9, "train"), examples(4, "check")


def measure(model, tokenizer=None, train=TRAIN, validation=VALIDATION, **options):
    options = {"rank": RANK, "alpha": ALPHA, "seed": SEED, "damping": DAMPING} | options
    return score(model, tokenizer or tiny_tokenizer(), train, validation, **options)


def completion_loss(model, sample, tokenizer=None):
    """Mean nats a token of the completion of one sample, run by itself."""
    tokenizer = tokenizer or tiny_tokenizer()
    ids = torch.tensor([tokenizer(sample.prompt + sample.completion)["input_ids"]])
    start = len(tokenizer(sample.prompt)["input_ids"])
    logits = model(input_ids=ids).logits[0, start - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, ids[0, start:])


def literal_gradients(model, samples, parameters, tokenizer=None):
    """For each parameter its gradients (samples, *shape), one sample at a time."""
    rows = [
        torch.autograd.grad(completion_loss(model, sample, tokenizer), parameters)
        for sample in samples
    ]
    return [torch.stack(block) for block in zip(*rows, strict=True)]


def kronecker_factors(pairs):
    """E[u u^T] and E[e e^T] of the positions a gradient reaches, from (u, e) pairs of samples."""
    errors = torch.cat([e for _, e in pairs])
    reached = errors.abs().sum(1) > 1e-9 * errors.abs().sum(1).max()
    inputs = torch.cat([u for u, _ in pairs])[reached]
    return (inputs.T @ inputs).numpy(), (errors.T @ errors).numpy()


def autograd_gradients(model, tokenizer, samples):
    """For each sample and projection grad(B) of a LoRA really added to the model, one at a time."""
    lora = FreshLora(RANK, ALPHA, SEED)
    projections = find_decoder_layers(model).projections
    ups, handles = [], []
    for projection in projections:
        down = lora.down(projection).to(projection.weight.dtype)
        up = torch.zeros(projection.out_features, RANK, dtype=down.dtype, requires_grad=True)
        ups.append(up)

        def adapt(_module, args, output, down=down, up=up):
            return output + (ALPHA / RANK) * (args[0] @ down.T @ up.T)

        handles.append(projection.module.register_forward_hook(adapt))
    gradients = literal_gradients(model, samples, ups, tokenizer)
    for handle in handles:
        handle.remove()
    return [block.flatten(1).numpy() for block in gradients]  # per projection (samples, d)


def published_datainf(train, validation):
    """(samples,) influence of one block by DataInf's double loop, from gradients (samples, d)."""
    return double_loop_datainf(train, validation.mean(0), rule(train, DAMPING))
