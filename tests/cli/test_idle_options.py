"""Options that have no effect where they are given are refused, whatever their values."""

from __future__ import annotations

import re

import pytest
import typer

from layerif.artifacts import Plan
from layerif.cli import app
from layerif.cli.command import Command, parameters
from layerif.workflows.recipe import Recipe

SCORE = "score --model no/such/model --task agreement --out run"
METRIC = "metric {} --model no/such/model --out scores.json"
SPARSITY = "allocate sparsity {} --sparsity 0.5"
EXPERTS = "allocate experts vector.json --total 9"
SEARCH = "search sparsity --model no/such/model --sparsity 0.5"
DEPTH = "search depth --model no/such/model --drop 2"
PRUNE = "prune --model no/such/model --sparsity 0.5 --method magnitude --out pruned"
QUANTIZE = "quantize --model no/such/model --bits 4 --method rtn --out rounded"
BITS = "allocate bits vector.json --bits 4"
EVALUATE = "evaluate --model no/such/model"
VALIDATE = "validate --model no/such/model --scores vector.json --out truth"
FINETUNE = "finetune --model no/such/model --task agreement --out adapter"
COMPARE = "compare {} --model no/such/model --out study"
TEXT = "--calibration python-docs --calibration-samples 32 --context-length 512"

# What is typed, and the options in it that do nothing: each is given at its default.
IDLE = [
    (SCORE, "--size 16 --adapter-name default --tolerance 1e-8 --max-iterations 1000"),
    (SCORE, "--style alpaca --warmup-steps 0 --adapter lora"),
    (f"{SCORE} --subspace two_sided", "--rank 8 --alpha 16"),
    (f"{SCORE} --subspace full", "--rank 8 --alpha 16 --size 16"),
    (f"{SCORE} --subspace adapter --adapter lora", "--rank 8 --alpha 16"),
    (f"{SCORE} --subspace adapter --warmup-steps 3", "--adapter-name default"),
    (f"{SCORE} --damping-value 1", "--damping 0.1"),
    (f"{SCORE} --estimator cosine", "--damping 0.1 --damping-value 1 --damping-sweep 1"),
    (f"{SCORE} --preset paper", "--size 16"),
    ("doctor no/such/model", "--style alpaca"),
    (METRIC.format("uniform"), f"{TEXT} --batch-tokens 2048 --data-dir data --seed 0"),
    (METRIC.format("random"), "--dtype float32 --device cpu --device-map auto"),
    (METRIC.format("pl_alpha"), f"{TEXT} --seed 0"),
    (
        METRIC.format("shuffled --of uniform"),
        "--compat corrected --multiple 5 --statistic median --sparsity 0.5 --delta 0.05 --rank 8 "
        "--alpha 16 --of-kind bits --level 3 --method rtn --criterion token --group-size 32",
    ),
    (METRIC.format("dlp"), "--train-samples 200 --validation-samples 100 --max-length 512"),
    (METRIC.format("adapter_gain --task agreement"), f"{TEXT} --style alpaca"),
    (METRIC.format("quadratic"), "--group-size 32"),
    (SEARCH, "--seconds 9 --evaluations 9 --offspring 16 --stages 1024:4 --step 0.02"),
    (SEARCH, "--style alpaca --overwrite"),
    (f"{SEARCH} --target agreement", "--style alpaca"),
    (
        f"{SEARCH} --strategy evolution --evaluations 9 --start uniform",
        "--rounds 5 --delta 0.05 --eta 0.06 --tokens 4096",
    ),
    (f"{DEPTH} --strategy greedy", "--tokens 2048 --candidates 4"),
    (f"{DEPTH} --strategy random", "--tokens 2048 --trial-tokens 1024 --candidates 4"),
    (
        "allocate depth vector.json --total 2 --map last",
        "--orientation direct --on-constant error --aggregate positive",
    ),
    (
        "allocate bits vector.json --bits 4 --map uniform",
        "--spread 1 --on-constant error --shuffle 0",
    ),
    (SPARSITY.format("vector.json"), "--aggregate positive --trust-remote-code --overwrite"),
    (SPARSITY.format("vector.json --map owl"), "--epsilon 0.1 --smooth"),
    (SPARSITY.format("vector.json --map dlp"), "--epsilon 0.1 --no-smooth"),
    (SPARSITY.format("vector.json"), "--lam 0.1"),
    (SPARSITY.format("vector.json --granularity projection"), "--smooth"),
    (
        SPARSITY.format("vector.json --map uniform"),
        "--epsilon 0.1 --smooth --lam 0.1 --orientation direct --on-constant error",
    ),
    (f"{EXPERTS} --map mola", "--beta 3 --orientation direct --normalise minmax --compat none"),
    (f"{EXPERTS} --map mola", "--on-constant error --aggregate positive"),
    (EXPERTS, "--shape 2,4,6,8 --aggregate positive --rank 8 --trust-remote-code --overwrite"),
    (
        PRUNE,
        f"{TEXT} --batch-tokens 2048 --hidden-states auto --all-experts --data-dir data --seed 0",
    ),
    (QUANTIZE, "--column-order diagonal"),
    (
        f"{QUANTIZE} --ranges minmax",
        f"{TEXT} --batch-tokens 2048 --hidden-states auto --all-experts --data-dir data --seed 0",
    ),
    (f"{BITS} --map uniform", "--spread 1 --orientation direct --on-constant error"),
    (f"{SEARCH} --strategy quadratic", "--start uniform"),
    (f"{SEARCH} --start uniform", "--criterion diagonal"),
    ("search bits --model no/such/model --bits 3 --method rtn", "--column-order given"),
    ("search bits --model no/such/model --bits 3 --symmetric", "--offset minimum"),
    (f"{QUANTIZE} --symmetric", "--offset minimum"),
    (
        f"{COMPARE.format('bits')} --bits 3 --tasks python-docs --symmetric",
        "--offset minimum",
    ),
    (
        f"{COMPARE.format('bits')} --bits 3 --tasks python-docs --method rtn",
        "--column-order diagonal",
    ),
    (f"{EVALUATE} --tasks agreement", "--shots 0 --max-tokens 64 --context-length 512"),
    (f"{EVALUATE} --tasks agreement", "--style alpaca --overwrite --adapter-name default"),
    (f"{EVALUATE} --tasks python-docs", "--samples 4 --max-length 512 --scoring likelihood"),
    (f"{EVALUATE} --harness piqa", "--scoring likelihood --no-cache --style plain"),
    (VALIDATE, "--train-samples 200 --validation-samples 100 --train-steps 20 --rank 8"),
    (VALIDATE, "--learning-rate 0.001"),
    (VALIDATE, "--alpha 16 --max-length 512 --style alpaca --task agreement"),
    (f"{VALIDATE} --truth isolated", "--delta 0.05"),
    (f"{VALIDATE} --truth capacity --task agreement", f"{TEXT} --sparsity 0.5 --delta 0.05"),
    (FINETUNE, "--top-k 2 --balance 0 --strict-dropout --style alpaca"),
    (f"{FINETUNE} --plan ranks.json", "--rank 8 --top-k 2 --balance 0 --strict-dropout"),
    (f"{FINETUNE} --plan experts.json", "--strict-dropout --adapt-experts"),
    (f"{FINETUNE} --dropout 0.1", "--adapt-experts"),
    (
        "finetune --model no/such/model --task python-docs --out adapter",
        "--no-append-eos --style alpaca",
    ),
    (f"{FINETUNE} --max-steps 3", "--epochs 3"),
    (f"{FINETUNE} --validation-samples 0", "--evaluate-every 3 --patience 3"),
    (f"{FINETUNE} --patience 3", "--checkpoint-every 50"),
    (
        f"{COMPARE.format('sparsity')} --sparsity 0.5 --tasks python-docs --plans uniform",
        "--scores run --tries 4 --samples 9 --max-length 512 --style alpaca",
    ),
    (
        f"{COMPARE.format('sparsity')} --sparsity 0.5 --tasks agreement",
        "--max-tokens 64 --style alpaca",
    ),
    (
        f"{COMPARE.format('sparsity')} --sparsity 0.5 --tasks python-docs",
        "--scoring likelihood --evolution-seconds 600",
    ),
    (
        f"{COMPARE.format('experts')} --total 9 --task agreement --max-steps 3",
        "--scores run --epochs 3 --strict-dropout --style alpaca",
    ),
    (
        f"{COMPARE.format('depth')} --drop 1 --tasks python-docs --plans random,last",
        "--candidates 4 --trial-tokens 1024 --tokens 2048 --samples 9",
    ),
    ("export llamacpp bits.json", "--trust-remote-code"),
    ("tasks show agreement", "--style alpaca --model no/such/model --trust-remote-code"),
]


def each(options):
    """One option with its value at a time."""
    words = options.split()
    starts = [place for place, word in enumerate(words) if word.startswith("--")]
    return [words[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vector.json").write_text("[0.1, 0.9, 0.4]")
    for kind in ("experts", "ranks", "bits"):
        Plan(kind=kind, allocation=[2, 3, 4]).save(tmp_path / f"{kind}.json")
    return tmp_path


@pytest.mark.parametrize(("command", "options"), IDLE)
def test_an_option_that_does_nothing_is_refused_by_its_name(layerif, folder, command, options):
    before = sorted(folder.iterdir())
    for option, *value in each(options):
        status, out, err = layerif(*command.split(), option, *value)
        assert (status, out) == (2, ""), (option, err)
        # These two are named without their no.
        named = re.sub("--no-(smooth|append-eos)", r"--\1", option)
        assert f"{named} has no effect here" in err
    assert sorted(folder.iterdir()) == before


def commands():
    """Every command by the words that call it."""
    group = typer.main.get_command(app)
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        below = command.list_commands(None) if hasattr(command, "list_commands") else []
        yield from ((f"{name} {n}", command.get_command(None, n)) for n in below)
        if not below:
            yield name, command


def test_rules_are_of_options_that_exist_and_each_has_an_example():
    known = dict(commands())
    tried = {}
    for command, options in IDLE:
        name = next(n for n in sorted(known, key=len, reverse=True) if command.startswith(n))
        # One metric's command may serve for those of all.
        tried.setdefault(name.partition(" ")[0], set()).update(words[0] for words in each(options))
    for name, command in known.items():
        # They have the rules of `score` and of `finetune`.
        if name in ("solve", "compare experts"):
            continue
        options = parameters(command)
        for rule in getattr(command.callback, "rules", ()):
            for option in set(rule.options.split()) & options.keys():
                flags = {*options[option].opts, *options[option].secondary_opts}
                assert flags & tried[name.partition(" ")[0]], (name, option)
    assert all(isinstance(command, Command) for command in known.values())
    for kind in Recipe.stages().values():
        assert {o for rule in kind.rules for o in rule.options.split()} <= set(kind.model_fields)


RECIPE = """\
model: smollm2
out: run
score:
  task: agreement
  {score}
sparsity:
  target: 0.5
  {sparsity}
experts: {{total: 150}}
finetune:
  seeds: [0]
  {finetune}
prune:
  method: magnitude
  {prune}
evaluate:
  tasks: [agreement]
  {evaluate}
"""


@pytest.mark.parametrize(
    ("stage", "line", "written"),
    [
        ("score", 5, "size: 16"),
        ("score", 5, "style: alpaca"),
        ("sparsity", 8, "rounds: 5"),
        ("finetune", 12, "strict_dropout: false"),
        ("prune", 15, "calibration: python-docs"),
        ("prune", 15, "hidden_states: auto"),
        ("prune", 15, "all_experts: true"),
        ("evaluate", 18, "context_length: 512"),
    ],
)
def test_a_key_that_does_nothing_is_refused_with_its_line(layerif, folder, stage, line, written):
    empty = dict.fromkeys(Recipe.stages(), "")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(**{**empty, stage: written}))
    status, _, err = layerif("run", path)
    assert status == 2
    assert f"line {line}: {stage}.{written.split(':')[0]} has no effect here" in err
    assert not (folder / "run").exists()
    # What the program writes out itself is without such keys.
    path.write_text(RECIPE.format(**empty))
    followed = Recipe.load(path)
    path.write_text(followed.text())
    assert Recipe.load(path) == followed
