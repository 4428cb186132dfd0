"""What `layerif allocate sparsity --map marginal` does, from plain values to a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerif.artifacts import Allocation
    from layerif.core.choices import Dtype, PromptStyle


def marginal_plan(
    model: str,
    sparsity: float,
    *,
    out: Path | None = None,
    calibration: str = "python-docs",
    target: str | None = None,
    method: str = "wanda",
    granularity: str = "projection",
    rounds: int = 5,
    delta: float = 0.05,
    eta: float = 0.06,
    tokens: int = 4096,
    held_out_tokens: int = 8192,
    below: float = 0.25,
    above: float = 0.2,
    samples: int = 16,
    context_length: int = 512,
    seed: int = 0,
    batch_tokens: int = 2048,
    style: PromptStyle = "alpaca",
    template_option: list[str] | None = None,
    dtype: Dtype = "float32",
    device: str = "auto",
    data_dir: Path | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> Allocation:
    """Open the model, load the texts, and make the plan; with `out` it is saved and found again.

    Args:
        model: hub id, folder, GGUF file or alias.
        sparsity: fraction of zeros over all projections.
        out: JSON file of the plan; None keeps nothing.
        calibration: name of a corpus, or a text file.
        target: name of the task or corpus that the loss is taken on; None for the calibration text.
        style, template_option: of a task's prompts.
        overwrite: replace what `out` holds, where it is from different settings.

    The other arguments are those of `SearchOptions`, `open_model` and `load_task`.

    Raises:
        InputError: a name or value that will not do, or `out` holds another result.
        NumericalError: what is measured is not finite.
    """
    from layerif.artifacts import Allocation
    from layerif.cli.options import prompts
    from layerif.core.checkpoint import check_out
    from layerif.data import load_corpus, load_sources

    if out is not None:
        check_out(out, Allocation.file_kind(), overwrite=overwrite)
    corpus = load_corpus(calibration, data_dir=data_dir)
    words = prompts(style, template_option, model, trust_remote_code=trust_remote_code)
    aimed = None if target is None else load_sources([target], data_dir=data_dir, **words)[0]

    from layerif.model.opening import open_model
    from layerif.search.options import SearchOptions
    from layerif.workflows.searching import search_into

    opened, tokenizer = open_model(
        model, dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )
    options: dict[str, Any] = {
        "method": method,
        "granularity": granularity,
        "rounds": rounds,
        "delta": delta,
        "eta": eta,
        "tokens": tokens,
        "held_out_tokens": held_out_tokens,
        "below": below,
        "above": above,
        "samples": samples,
        "context_length": context_length,
        "seed": seed,
        "batch_tokens": batch_tokens,
    }
    return search_into(
        out,
        opened,
        tokenizer,
        sparsity,
        calibration=corpus,
        options=SearchOptions(**options),
        target=aimed,
        overwrite=overwrite,
    )
