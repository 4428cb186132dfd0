"""Options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerif.core.choices import (
    Dtype,
    Preset,
)

OutFolder = Annotated[Path, typer.Option("--out", help="Folder to write to.", show_default=False)]
RunFolder = Annotated[
    Path, typer.Option("--out", help="Run folder to write to.", show_default=False)
]
OutModel = Annotated[Path, typer.Option("--out", help="Model folder to write.", show_default=False)]
PresetOption = Annotated[
    Preset | None,
    typer.Option(
        "--preset",
        help="paper: LayerIF's own setting in place of the defaults; what is given wins.",
        show_default=False,
    ),
]
InfluenceScores = Annotated[
    Path | None,
    typer.Option(
        "--scores",
        help="Run folder of `layerif score`, for the plan layerif.",
        show_default=False,
    ),
]
Adapter = Annotated[
    Path | None,
    typer.Option(
        "--adapter",
        help="Folder of a LoRA, or of a mixture of LoRA experts, that PEFT has written.",
        show_default=False,
    ),
]
AdapterName = Annotated[
    str, typer.Option("--adapter-name", help="Which one, where the folder holds several.")
]
PruningDtype = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        help="Precision of the computation. The folder keeps that of the model's files, where it "
        "is narrower.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 ..., or auto.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder of parquet data sets, instead of the hub."),
]
# Splits do not depend on it: two commands with different seeds would otherwise train on, or
# calibrate with, what the other one tests on.
Seed = Annotated[
    int, typer.Option("--seed", min=0, help="Seed of all draws; splits do not depend on it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON for machines.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a result that layerif wrote to --out before.")
]
NoCache = Annotated[
    bool,
    typer.Option("--no-cache", help="Keep no likelihoods for later, and use none kept before."),
]


def words(text: str) -> list[str]:
    """The words of an option that takes several, with commas between them."""
    return [word.strip() for word in text.split(",") if word.strip()]


def likelihood_cache(*, no_cache: bool) -> Path | None:
    """Where the command line keeps likelihoods, by model and texts."""
    from layerif.core.files import cache_folder

    return None if no_cache else cache_folder() / "likelihoods"
