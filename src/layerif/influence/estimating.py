"""What a scoring run will take, from one batch of it that is really run, and known sizes."""

from __future__ import annotations

import ctypes
import os
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch

from layerif.data.batching import Encoded, collate
from layerif.influence.gradients import PerSampleGradients
from layerif.influence.preparing import Samples, dtype_of
from layerif.influence.subspaces.base import Matrix

# Between two looks at the process's memory; a large batch takes hundreds of them.
INTERVAL = 0.005


@dataclass(frozen=True)
class Estimate:
    """Of a run over all samples, gradients kept, in a fresh LoRA.

    Attributes:
        samples: training and validation samples together.
        tokens: of them.
        tokens_per_second: forward and backward, of the largest batch.
        seconds: of all batches; hashing weights and solving come on top.
        weights, gradients, activations: bytes of the model, of the training samples' gradients (in
            memory or on disk), and of the largest batch at its peak, as it was measured.
        free_memory, free_disk: bytes, of the device that computes and of the current folder.
    """

    samples: int
    tokens: int
    tokens_per_second: float
    seconds: float
    weights: int
    gradients: int
    activations: int
    free_memory: int
    free_disk: int


def estimate(
    model: Any,
    per_sample: PerSampleGradients,
    matrices: Sequence[Matrix],
    train: Sequence[Encoded],
    validation: Sequence[Encoded],
    batch_tokens: int,
) -> Estimate:
    """Run the largest batch of the run and scale it up.

    Args:
        per_sample: the hooks, on the model.
        matrices: whose gradients are kept.
        train, validation: all samples of the run.
        batch_tokens: of a batch.
    """
    device = model.get_input_embeddings().weight.device
    batches = [b for s in (train, validation) for b in Samples.of(s, batch_tokens, model).batches]
    largest = max(batches, key=lambda batch: sum(len(item.input_ids) for item in batch))
    batch = collate(largest, device=device)
    with _peak(device) as memory:
        began = time.perf_counter()
        per_sample(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
    itemsize = torch.promote_types(dtype_of(model), torch.float32).itemsize
    tokens = sum(len(item.input_ids) for batch in batches for item in batch)
    cuda = device.type == "cuda"
    return Estimate(
        samples=len(train) + len(validation),
        tokens=tokens,
        tokens_per_second=batch.tokens / seconds,
        seconds=tokens * seconds / batch.tokens,
        weights=sum(p.nbytes for p in model.parameters()),
        gradients=len(train) * sum(matrix.size for matrix in matrices) * itemsize,
        activations=memory.bytes,
        free_memory=torch.cuda.mem_get_info(device)[0]
        if cuda
        else psutil.virtual_memory().available,
        free_disk=shutil.disk_usage(Path.cwd()).free,
    )


@contextmanager
def _peak(device: torch.device) -> Any:
    """By how many bytes memory rises inside at the most: the device's, or that of the process."""
    found = SimpleNamespace(bytes=0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    process, done = psutil.Process(), threading.Event()
    # Freed memory goes back to the system, so that its next use counts; where glibc has a way.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(INTERVAL):
            found.bytes = max(found.bytes, process.memory_info().rss - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
