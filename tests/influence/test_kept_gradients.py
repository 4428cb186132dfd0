"""Gradients as an artifact: kept, opened again, and solved without a model."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from helpers.scoring import TRAIN, VALIDATION
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif import collect, score, solve
from layerif.artifacts import LayerScores
from layerif.errors import InputError
from layerif.influence.options import ScoreOptions, SolveOptions
from layerif.influence.store import Gradients
from layerif.model import layers

OPTIONS = {"rank": 2, "alpha": 4.0, "batch_tokens": 128}
SAMPLES = ["--task", "agreement", "--train-samples", 12, "--validation-samples", 6, "--rank", 2]
OTHERS = [
    {"estimator": "exact"},
    {"estimator": "cg", "block": "layer"},
    {"damping": 1.0, "normalise": "per_parameter", "block": "projection"},
    {"damping_sweep": (0.01, 10.0)},
]


@pytest.mark.parametrize("solving", OTHERS)
def test_what_is_solved_of_collected_gradients_is_the_score(solving):
    samples = (tiny_model(), tiny_tokenizer(), TRAIN, VALIDATION)
    gradients = collect(*samples, **OPTIONS)
    found, expected = solve(gradients, **solving), score(*samples, **OPTIONS, **solving)
    assert np.array_equal(found.influence, expected.influence)
    assert np.array_equal(found.projection_influence, expected.projection_influence)
    assert found.damping_sweep == expected.damping_sweep
    seconds = {"seconds": 0.0}
    assert found.record.model_copy(update=seconds) == expected.record.model_copy(update=seconds)


def test_an_estimator_by_positions_wants_its_factors():
    samples = (tiny_model(), tiny_tokenizer(), TRAIN, VALIDATION)
    with pytest.raises(InputError, match="factors"):
        solve(collect(*samples, **OPTIONS), estimator="ekfac")
    with_factors = collect(*samples, **OPTIONS, factors=True)
    expected = score(*samples, **OPTIONS, estimator="ekfac", block="layer")
    found = solve(with_factors, estimator="ekfac", block="layer")
    assert np.array_equal(found.influence, expected.influence)


def test_gradients_that_passes_would_not_keep_are_not_collected():
    with pytest.raises(InputError, match="passes"):
        collect(tiny_model(), tiny_tokenizer(), TRAIN, VALIDATION, keep="passes")


@pytest.fixture
def kept(layerif, model, tmp_path):
    out = tmp_path / "kept"
    words = ["--model", model, "--out", out, *SAMPLES, "--keep-gradients"]
    status, _, err = layerif("score", *words)
    assert status == 0, err
    return out, words


def test_kept_gradients_are_solved_without_a_model(layerif, kept, model, tmp_path, monkeypatch):
    out, words = kept
    once = tmp_path / "once"
    again = ["--estimator", "exact", "--damping", 1.0]
    assert layerif("score", *words[:2], "--out", once, *SAMPLES, *again)[0] == 0
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_a, **_k: pytest.fail("runs a model"))
    monkeypatch.setattr(layers, "find_decoder_layers", lambda *_: pytest.fail("opens a model"))
    solved = tmp_path / "solved"
    status, _, err = layerif("solve", out, "--out", solved, *again)
    assert status == 0, err
    first, second = LayerScores.load(once), LayerScores.load(solved)
    assert np.array_equal(first.influence, second.influence)
    assert first.fingerprint == second.fingerprint
    status, _, err = layerif("solve", out, "--out", solved, *again)
    assert status == 0, err
    assert "nothing is done again" in err


def test_solving_imports_nothing_that_opens_models(kept, tmp_path):
    program = """
import contextlib, sys
from layerif.cli import main
with contextlib.suppress(SystemExit):
    main()
print(sorted({"transformers", "peft", "datasets", "scipy"} & sys.modules.keys()))
"""
    words = ["solve", kept[0], "--out", tmp_path / "solved"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=True
    )
    assert (tmp_path / "solved" / "scores.json").is_file(), done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_scoring_again_with_other_options_reuses_them(layerif, kept, monkeypatch):
    out, words = kept
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_a, **_k: pytest.fail("runs the model"))
    status, _, err = layerif("score", *words, "--estimator", "grad_dot", "--overwrite")
    assert status == 0, err
    assert "reused" in err
    assert LayerScores.load(out).record.estimator == "grad_dot"


def test_gradients_of_another_subspace_are_not_taken_for_these(layerif, kept, model, tmp_path):
    out, words = kept
    for place, more in ((out, ["--overwrite"]), (tmp_path / "fresh", [])):
        command = [*words[:2], "--out", place, *SAMPLES, "--alpha", 4, *more]
        status, _, err = layerif("score", *command)
        assert status == 0, err
        assert "reused" not in err
    found, expected = LayerScores.load(out), LayerScores.load(tmp_path / "fresh")
    assert np.array_equal(found.influence, expected.influence)


def test_damaged_gradients_are_refused_and_collected_again(layerif, kept, tmp_path):
    out, words = kept
    file = out / "gradients" / "gradients.bin"
    file.write_bytes(file.read_bytes()[:-4])
    status, _, err = layerif("solve", out, "--out", tmp_path / "solved")
    assert status == 2
    assert "gradients.bin" in err
    assert not (tmp_path / "solved").exists()
    status, _, err = layerif("score", *words, "--estimator", "exact", "--overwrite")
    assert status == 0, err
    assert Gradients.open(out / "gradients").losses.shape == (12,)


def test_clean_removes_gradients_and_nothing_else(layerif, kept):
    out, _ = kept
    scores = LayerScores.load(out)
    (out / "gradients" / "mine.txt").write_text("mine")
    assert layerif("clean", out)[0] == 2
    (out / "gradients" / "mine.txt").unlink()
    status, printed, _ = layerif("clean", out)
    assert status == 0
    assert "gradients" in printed
    assert not (out / "gradients").exists()
    assert LayerScores.load(out) == scores
    assert layerif("clean", out)[0] == 2
    status, _, err = layerif("solve", out, "--out", out.parent / "solved")
    assert status == 2
    assert "holds no kept gradients" in err


def test_a_solve_that_fails_leaves_the_gradients(layerif, model, tmp_path, monkeypatch):
    from layerif.errors import NumericalError
    from layerif.influence.estimators.base import Estimator

    out = tmp_path / "run"
    words = ["score", "--model", model, "--out", out, *SAMPLES]

    def fails(*_):
        raise NumericalError("the block cannot be solved")

    with monkeypatch.context() as patch:
        patch.setattr(Estimator, "solutions", fails)
        assert layerif(*words)[0] == 3
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_a, **_k: pytest.fail("runs the model"))
    status, _, err = layerif(*words, "--estimator", "exact")
    assert status == 0, err


def test_options_are_told_apart_by_what_results_depend_on():
    options = ScoreOptions(keep="disk", memory=2.0, rank=4)
    assert not {"keep", "memory", "padding_side"} & set(options.recorded())
    assert options.part(SolveOptions) == SolveOptions()
    assert options.but(rank=8).rank == 8
    with pytest.raises(InputError, match="rank"):
        options.but(rank=0)
    with pytest.raises(InputError, match="damping_value"):
        ScoreOptions(damping_valu=1.0)
