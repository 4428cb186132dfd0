"""How useful each estimator and subspace is: linear datamodeling score and split-half reliability.

Random halves of the training samples are fine-tuned on, a fresh LoRA each, and the validation loss
of each is measured. The linear datamodeling score (LDS; Park et al., arXiv 2303.14186) is the rank
correlation, over these subsets, between the influence of a subset's samples, summed over samples
and layers, and the fall of the validation loss that really came of them. Its interval is a
bootstrap over subsets.

Reliability is the rank correlation between the layer scores that two disjoint halves of the
training samples give (mean over random splits; the Hessian is that of all samples), and between
those of two halves of the validation samples.

Every retraining and every scoring is kept in --out, so that a run cut short goes on, and a larger
--subsets adds to what is there. A retraining takes whole passes over its subset, so that nothing
but the samples and the seed of its LoRA tells one from another.

    python benchmarks/lds.py --out runs/lds --subsets 24
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lds_statistics import lds, reliability, spearman
from numpy.typing import NDArray
from peft import LoraConfig

from layerif.artifacts import Fingerprint
from layerif.core.caching import remembered
from layerif.core.checkpoint import Steps, resumable
from layerif.core.choices import Aggregation
from layerif.core.fingerprint import hash_model, hash_texts
from layerif.data import load_task
from layerif.data.base import Example
from layerif.data.batching import Batch, collate, pack
from layerif.data.tokenizing import encode
from layerif.influence.scoring import score
from layerif.likelihood import row_sums, token_losses
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import open_model
from layerif.plans.maps.scores import aggregate

FloatArray = NDArray[np.float64]
Outcome = dict[str, torch.Tensor]

RANK, ALPHA = 8, 16
AGGREGATIONS: tuple[Aggregation, ...] = ("positive", "all", "top")


class Variant(NamedTuple):
    """One way to score: a subspace, an estimator, and the factor of its damping rule."""

    subspace: str
    estimator: str
    damping: float = 0.1

    @property
    def label(self) -> str:
        return self.estimator + (f", damping {self.damping:g}" if self.damping != 0.1 else "")


# `grad_dot` comes first in each subspace: it solves nothing, so its time is that of the gradients,
# which the others then find kept. Full weights keep nothing.
FORMED = (
    ("grad_dot",),
    ("cosine",),
    ("datainf",),
    ("datainf", 1000.0),
    ("exact",),
    ("exact", 1000.0),
)
VARIANTS = (
    *(Variant("fresh_lora", *each) for each in FORMED),
    *(Variant("two_sided", *each) for each in (*FORMED, ("ekfac",))),
    *(Variant("full", *each) for each in FORMED[:3]),
    *(Variant("adapter", *each) for each in FORMED),
)
SUBSPACES = list(dict.fromkeys(variant.subspace for variant in VARIANTS))


class Data(NamedTuple):
    """The samples, and what a result depends on."""

    train: Sequence[Example]
    validation: Sequence[Example]
    model: str
    options: dict[str, Any]

    def fingerprint(self, **more: Any) -> Fingerprint:
        texts = [[e.prompt, e.completion] for e in (*self.train, *self.validation)]
        return Fingerprint(
            model=self.model, data=hash_texts(texts), options={**self.options, **more}
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="agreement")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--train-samples", type=int, default=40)
    parser.add_argument("--validation-samples", type=int, default=16)
    parser.add_argument("--subspaces", nargs="+", choices=SUBSPACES, default=SUBSPACES)
    parser.add_argument("--subsets", type=int, default=24)
    parser.add_argument("--training-steps", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--lora-seed", type=int, default=1, help="of the retrained LoRAs' A")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="where finished work is kept")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)

    task = load_task(options.task, data_dir=options.data_dir)
    model, tokenizer = open_model(options.model, dtype=options.dtype)
    data = Data(
        task.sample("train", options.train_samples, seed=0),
        task.sample("validation", options.validation_samples, seed=0),
        hash_model(model),
        {
            "train": options.train_samples,
            "steps": options.training_steps,
            "rate": options.learning_rate,
            "threads": options.threads,
        },
    )
    variants = [variant for variant in VARIANTS if variant.subspace in options.subspaces]
    plain = [variant for variant in variants if variant.subspace != "adapter"]
    scored = scorings(options.out, model, tokenizer, data, plain)

    trainer = Trainer(model, tokenizer, data, options.training_steps, options.learning_rate)
    subsets = np.array([draw(number, len(data.train)) for number in range(options.subsets)])
    outcomes = [
        remembered(
            options.out,
            data.fingerprint(subset=subset.tolist(), lora=options.lora_seed),
            lambda _steps, subset=subset: trainer.outcome(subset, options.lora_seed),
        )
        for subset in subsets
    ]
    losses = np.array([outcome["loss"].item() for outcome in outcomes])
    seconds = np.array([outcome["seconds"].item() for outcome in outcomes])
    print(
        f"{options.model}, {task.name}, {len(data.train)} + {len(data.validation)} samples, "
        f"{options.subsets} subsets of {subsets.shape[1]}, LoRA of rank {RANK}, "
        f"{options.training_steps} steps of Adam at {options.learning_rate:g}, {options.dtype}, "
        f"{options.threads} threads, torch {torch.__version__}, {platform.machine()}"
    )
    before = trainer.before
    print(
        f"validation loss {before:.4f} before, {losses.mean():.4f} after on average (standard "
        f"deviation {losses.std():.4f}, {losses.min():.4f} to {losses.max():.4f}); "
        f"{np.median(seconds):.0f} s a retraining"
    )
    if scored:
        report(scored, subsets, losses)

    # The paper's way: an adapter trained on all samples, as the subsets' were, from another A.
    adapted = [variant for variant in variants if variant.subspace == "adapter"]
    if adapted:
        trainer.train(range(len(data.train)), seed=0)
        report(scorings(options.out, model, tokenizer, data, adapted), subsets, losses)


class Trainer:
    """Fine-tunes a LoRA on subsets, from the same start each time."""

    def __init__(self, model: Any, tokenizer: Any, data: Data, steps: int, rate: float) -> None:
        names = {p.name.split(".")[-1] for p in find_decoder_layers(model).projections}
        model.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=sorted(names)))
        self._model = model
        self._weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._steps, self._rate = steps, rate
        self._train, self._validation = (
            encode(tokenizer, [(e.prompt, e.completion) for e in examples], 512)[0]
            for examples in (data.train, data.validation)
        )
        self._reset(0)
        self.before = self._loss()

    def outcome(self, subset: Sequence[int], seed: int) -> Outcome:
        """The validation loss after training on a subset."""
        began = time.perf_counter()
        self.train(subset, seed)
        found = {"loss": self._loss(), "seconds": time.perf_counter() - began}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}

    def train(self, subset: Sequence[int], seed: int) -> None:
        """Leave the adapter trained on the samples of these numbers."""
        self._reset(seed)
        chosen = set(subset)
        batches = self._batches([item for item in self._train if item.index in chosen])
        optimizer = torch.optim.AdamW(self._weights.values(), self._rate, weight_decay=0)
        for _ in range(self._steps):
            optimizer.zero_grad()
            for batch in batches:
                losses = row_sums(token_losses(self._model, batch), batch) / batch.counts
                (losses.sum() / len(chosen)).backward()
            optimizer.step()
        optimizer.zero_grad()

    def _reset(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self._weights.items():
                if "lora_A" in name:
                    torch.nn.init.kaiming_uniform_(weight, math.sqrt(5), generator=generator)
                else:
                    weight.zero_()

    def _loss(self) -> float:
        total = 0.0
        with torch.no_grad():
            for batch in self._batches(self._validation):
                losses = row_sums(token_losses(self._model, batch), batch) / batch.counts
                total += losses.double().sum().item()
        return total / len(self._validation)

    @staticmethod
    def _batches(items: Any) -> list[Batch]:
        return [collate(batch, device=torch.device("cpu")) for batch in pack(items, 1024)]


def draw(number: int, samples: int) -> NDArray[np.intp]:
    """Half of the samples, in order; the same for a number whatever the count of subsets."""
    return np.sort(np.random.default_rng(number).permutation(samples)[: samples // 2])


def scorings(
    out: Path, model: Any, tokenizer: Any, data: Data, variants: Sequence[Variant]
) -> dict[Variant, Outcome]:
    """For each variant its influence (layers, samples), whole and from halves of the validation."""
    found: dict[Variant, Outcome] = {variant: {} for variant in variants}
    middle = len(data.validation) // 2
    parts = {
        "whole": data.validation,
        "first": data.validation[:middle],
        "second": data.validation[middle:],
    }
    for variant in variants:
        for part, validation in parts.items():
            kept = variant.subspace != "full"
            # Three passes a scoring are dear; the halves are for what keeps its gradients.
            if not kept and part != "whole":
                continue
            gradients = data.fingerprint(subspace=variant.subspace, part=part, gradients=True)
            run = partial(scoring, model, tokenizer, data.train, validation, variant)
            path = out / f"gradients-{gradients.digest()}"
            compute = partial(with_gradients, path, gradients, run) if kept else run
            outcome = remembered(out, data.fingerprint(**variant._asdict(), part=part), compute)
            found[variant] |= {f"{part}.{name}": tensor for name, tensor in outcome.items()}
    return found


class GradientsAlone:
    """Steps without those of solved blocks, which are one estimator's, not another's."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    @property
    def folder(self) -> Path | None:
        return self._steps.folder

    def of_kind(self, *_kind: Any) -> GradientsAlone:
        return self  # which is the same for all: gradients on disk

    def load(self, step: str) -> Outcome | None:
        return self._steps.load(step) if self._shared(step) else None

    def awaited(self, step: str, wanted: Callable[[Outcome], bool] = bool) -> Outcome:
        return self._steps.awaited(step, wanted)

    def save(self, step: str, tensors: Outcome) -> None:
        if self._shared(step):
            self._steps.save(step, tensors)

    def reserve(self, size: float, what: str, of: str = "*") -> None:
        self._steps.reserve(size, what, of)

    @staticmethod
    def _shared(step: str) -> bool:
        return step.startswith(("training-", "validation-"))


class _Keep(Exception):
    """Leaves `resumable` with the steps in place."""


def with_gradients(
    path: Path, fingerprint: Fingerprint, run: Callable[[Steps], Outcome], _steps: Steps
) -> Outcome:
    """Run with the gradients that another estimator left at `path`, and leave them there."""
    found: Outcome = {}
    try:
        with resumable(path, fingerprint) as steps:
            found = run(GradientsAlone(steps))
            raise _Keep
    except _Keep:
        return found


def scoring(
    model: Any,
    tokenizer: Any,
    train: Sequence[Example],
    validation: Sequence[Example],
    variant: Variant,
    steps: Steps,
) -> Outcome:
    scores = score(
        model,
        tokenizer,
        train,
        validation,
        rank=RANK,
        alpha=ALPHA,
        subspace=variant.subspace,  # type: ignore[arg-type]
        estimator=variant.estimator,
        damping=variant.damping,
        keep="passes" if variant.subspace == "full" else "disk",
        steps=steps,
    )
    return {
        "influence": torch.from_numpy(scores.influence),
        "train_losses": torch.from_numpy(scores.train_losses),
        "seconds": torch.tensor(scores.record.seconds, dtype=torch.float64),
    }


def report(scored: dict[Variant, Outcome], subsets: NDArray[np.intp], losses: FloatArray) -> None:
    """Print a Markdown table with a row for each variant; seconds are with the gradients'."""
    halves = [f"{half}: {how}" for half in ("training", "validation") for how in AGGREGATIONS]
    print(f"\n| subspace | estimator | LDS | less the first | s | {' | '.join(halves)} |")
    print("| --- " * (5 + len(halves)) + "|")
    outcomes = list(scored.values())
    first = outcomes[0]["whole.influence"].numpy().sum(0)
    gradients = {
        variant.subspace: outcome["whole.seconds"].item()
        for variant, outcome in scored.items()
        if variant.estimator == "grad_dot"
    }

    def row(subspace: str, label: str, values: FloatArray, cells: Sequence[str] = ()) -> None:
        figures = [str(lds(values, subsets, losses)), str(lds(values, subsets, losses, first))]
        print(f"| {' | '.join([subspace, label, *figures, *cells])} |")

    for variant, outcome in scored.items():
        whole = outcome["whole.influence"].numpy()
        seconds = outcome["whole.seconds"].item()
        if variant.subspace != "full" and variant.estimator != "grad_dot":
            seconds += gradients[variant.subspace]
        found = [reliability(whole, how) for how in AGGREGATIONS]
        if "first.influence" in outcome:
            parts = [outcome[f"{part}.influence"].numpy() for part in ("first", "second")]
            found += [float(spearman(*(aggregate(p, how) for p in parts))) for how in AGGREGATIONS]
        cells = [f"{seconds:.0f}", *(f"{value:.2f}" for value in found)]
        row(variant.subspace, variant.label, whole.sum(0), cells)
    row("none", "training loss", outcomes[0]["whole.train_losses"].numpy())


if __name__ == "__main__":
    main()
