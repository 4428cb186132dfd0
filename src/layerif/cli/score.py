"""`layerif score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerif.cli import options
from layerif.cli.output import emit, say
from layerif.cli.replay import write_recipe
from layerif.core.choices import BlockGranularity, Keep, Normalise, SubspaceName

SOLVER = ("damping", "damping_value", "tolerance", "max_iterations")
COMBINED = ("subspace", "rank", "alpha", "size", "estimator", "keep", "memory", "warmup_steps")


def score(
    context: typer.Context,
    model: options.Model,
    task: options.Task,
    out: Annotated[Path, typer.Option("--out", help="Run folder to write to.", show_default=False)],
    train_samples: Annotated[
        int, typer.Option("--train-samples", help="Samples whose influence is measured.")
    ] = 200,
    validation_samples: Annotated[
        int, typer.Option("--validation-samples", help="Samples whose mean loss is moved.")
    ] = 50,
    preset: options.PresetOption = None,
    subspace: Annotated[
        SubspaceName,
        typer.Option(
            "--subspace",
            help="Whose gradients are compared: a fresh LoRA, random projections, all weights, or "
            "an adapter.",
        ),
    ] = "fresh_lora",
    rank: Annotated[int, typer.Option("--rank", help="Rank of the LoRA subspace.")] = 8,
    alpha: Annotated[float, typer.Option("--alpha", help="Alpha of the LoRA subspace.")] = 16.0,
    size: Annotated[int, typer.Option("--size", help="Size of the two-sided projections.")] = 16,
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter",
            help="Folder of a LoRA that PEFT has written, for --subspace adapter.",
            show_default=False,
        ),
    ] = None,
    adapter_name: options.AdapterName = "default",
    warmup_steps: Annotated[
        int,
        typer.Option(
            "--warmup-steps",
            help="Fine-tune a fresh LoRA so many steps, for --subspace adapter.",
        ),
    ] = 0,
    estimator: Annotated[
        str,
        typer.Option("--estimator", help="datainf, grad_dot, cosine, exact, cg, lissa or ekfac."),
    ] = "datainf",
    damping: Annotated[
        float, typer.Option("--damping", help="lambda = damping * mean(|g|^2) / d in each block.")
    ] = 0.1,
    damping_value: Annotated[
        float | None,
        typer.Option("--damping-value", help="lambda itself, in place of the rule of --damping."),
    ] = None,
    damping_sweep: Annotated[
        str | None,
        typer.Option(
            "--damping-sweep",
            help="More factors, as in 0.01,1,100: how far the ranking of layers depends on them.",
            show_default=False,
        ),
    ] = None,
    block: Annotated[
        BlockGranularity,
        typer.Option("--block", help="What one inverse Hessian covers."),
    ] = "matrix",
    normalise: Annotated[
        Normalise,
        typer.Option(
            "--normalise", help="per_parameter divides the influence of a block by its parameters."
        ),
    ] = "none",
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Relative residual at which cg and lissa stop.")
    ] = 1e-8,
    max_iterations: Annotated[
        int, typer.Option("--max-iterations", help="Where cg and lissa stop at the latest.")
    ] = 1000,
    keep: Annotated[
        Keep,
        typer.Option("--keep", help="Where gradients are kept; passes compute them anew instead."),
    ] = "auto",
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory",
            help="GB that gradients and estimator may take.",
            show_default="nine tenths of what is free",
        ),
    ] = None,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Run layers again in the backward pass: less memory, a third more time.",
        ),
    ] = False,
    style: options.Style = "alpaca",
    template_option: options.TemplateOption = None,
    max_length: options.MaxLength = 512,
    batch_tokens: options.BatchTokens = 1024,
    dtype: options.DtypeOption = "float32",
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    data_dir: options.DataDir = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Measure the influence of training samples through each decoder layer.

    Writes scores.json, influence.safetensors and a picture to the run folder, and recipe.yaml,
    which replays it. Cut short, the same command goes on where it was. `torchrun -m layerif score
    ...` shares the work out over processes, which all have to see the run folder.
    """
    from layerif.artifacts import SCORES
    from layerif.core.checkpoint import check_out
    from layerif.core.processes import is_first
    from layerif.data import load_task
    from layerif.influence import check_combination
    from layerif.influence.estimators import checked_options

    asked = context.params
    solver = {name: asked[name] for name in SOLVER}
    factors = options.numbers(damping_sweep, "--damping-sweep")
    checked_options(estimator, **solver, sweep=factors)
    check_combination(**{name: asked[name] for name in (*COMBINED, "adapter")})
    check_out(out, SCORES, overwrite=overwrite)
    words = options.prompts(style, template_option, model, trust_remote_code=trust_remote_code)
    data = load_task(task, data_dir=data_dir, **words)
    train = data.sample("train", options.rows(context, data, "train"), seed)
    validation = data.sample("validation", options.rows(context, data, "validation"), seed)

    from layerif.model import open_model
    from layerif.report import leave_picture, plot_scores, scores_table, sweep_lines
    from layerif.workflows.stages import score_into

    opened, tokenizer = open_model(
        model,
        dtype=dtype,
        device=device,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        adapter=adapter,
        adapter_name=adapter_name,
    )
    scores = score_into(
        out,
        opened,
        tokenizer,
        data,
        train=train,
        validation=validation,
        options={
            **{
                name: asked[name]
                for name in (*COMBINED, *SOLVER, "block", "normalise", "max_length")
            },
            "adapter": adapter_name,
            "seed": seed,
            "batch_tokens": batch_tokens,
            "damping_sweep": factors,
            "gradient_checkpointing": gradient_checkpointing,
        },
        overwrite=overwrite,
    )
    if is_first():
        write_recipe(context, out)
        leave_picture(plot_scores, scores, beside=out / SCORES.mark)
    emit(scores_table(scores), scores.summary(), as_json=as_json)
    for line in sweep_lines(scores):
        say(line, as_json=as_json)
    say(f"wrote {out}", as_json=as_json)
