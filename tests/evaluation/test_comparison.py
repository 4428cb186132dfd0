"""Models compared in pairs: the right test on the right figures, and only on the same items."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from helpers.artifact_samples import MODEL, SETTING
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import Comparisons, Measurement, Outcomes, Results
from layerif.data.base import Example, Task
from layerif.data.corpora import Corpus
from layerif.errors import InputError
from layerif.evaluation.comparison import compare
from layerif.evaluation.evaluate import evaluate
from layerif.evaluation.statistics import holm
from layerif.report.comparisons import comparison_lines

ROWS = [
    Example(f"Question {i}?", choices[i % 2], choices, i % 2)
    for i, choices in enumerate([(" yes", " not")] * 40)
]
TEXT = " ".join(f"Line {i} of a text about {i % 7} things." for i in range(40))


def results(*measurements: Measurement) -> Results:
    return Results(model=MODEL, sparsity=0.5, measurements=list(measurements), setting=SETTING)


def accuracy(correct, nats, tokens=None, items="rows"):
    tokens = [1] * len(nats) if tokens is None else tokens
    outcomes = Outcomes(items=items, nats=nats, tokens=tokens, correct=correct)
    share = sum(correct) / len(correct)
    return Measurement(
        name="t", metric="accuracy", value=share, count=len(correct), outcomes=outcomes
    )


def perplexity(nats, tokens=None, items="chunks"):
    tokens = [10] * len(nats) if tokens is None else tokens
    value = float(np.exp(sum(nats) / sum(tokens)))
    outcomes = Outcomes(items=items, nats=nats, tokens=tokens)
    return Measurement(
        name="c", metric="perplexity", value=value, count=sum(tokens), outcomes=outcomes
    )


def measured(model, rows=ROWS, text=TEXT):
    """Results of a model on a task and a corpus made here."""
    task = Task("yes or no", {"train": [], "validation": [], "test": rows})
    corpus = Corpus("lines", calibration=[], evaluation=[text], separator="")
    return evaluate(model, tiny_tokenizer(), [task, corpus], context_length=32)


@pytest.fixture(scope="module")
def pair():
    """Results of a model, and of the same one with a projection gone."""
    whole = measured(tiny_model(dtype=torch.float64))
    broken = tiny_model(dtype=torch.float64)
    broken.model.layers[1].mlp.down_proj.weight.data.zero_()
    return {"whole": whole, "broken": measured(broken)}


def test_figures_and_differences_are_those_of_the_results(pair, tmp_path):
    found = compare(pair, "whole")
    assert [(c.name, c.metric) for c in found] == [
        ("yes or no", "accuracy"),
        ("yes or no", "completion_loss"),
        ("lines", "perplexity"),
    ]
    for comparison, figure in zip(
        found,
        (
            lambda r: r.measurements[0].value,
            lambda r: r.measurements[0].details["completion_loss"],
            lambda r: r.measurements[1].value,
        ),
        strict=True,
    ):
        assert comparison.value == pytest.approx(figure(pair["broken"]), rel=1e-6)
        assert comparison.baseline_value == pytest.approx(figure(pair["whole"]), rel=1e-6)
        assert comparison.difference == comparison.value - comparison.baseline_value
        assert comparison.low <= comparison.difference <= comparison.high
        assert (comparison.model, comparison.baseline) == ("broken", "whole")
    assert [c.count for c in found[:2]] == [40, 40]
    Comparisons(comparisons=found).save(tmp_path / "comparison.json")
    assert Comparisons.load(tmp_path / "comparison.json").comparisons == found


def test_outcomes_survive_the_file(pair, tmp_path):
    pair["whole"].save(tmp_path / "results.json")
    back = Results.load(tmp_path / "results.json")
    assert compare({"a": back, "b": pair["whole"]}, "a")[1].difference == 0
    # Numbers of a kind share a line, so that a person can still read the rest.
    assert len((tmp_path / "results.json").read_text().splitlines()) < 90


def test_accuracy_is_tested_by_mcnemar_and_losses_by_the_pairs():
    generator = np.random.default_rng(0)
    correct = generator.integers(0, 2, (2, 200)).tolist()
    nats = generator.normal(4, 1, 200)
    sides = [
        accuracy(c, (nats + shift).tolist())
        for c, shift in zip(correct, (0, generator.normal(0.1, 0.5, 200)), strict=True)
    ]
    first, second = compare({"a": results(sides[0]), "b": results(sides[1])}, "b")
    ahead = sum(a > b for a, b in zip(*correct, strict=True))
    behind = sum(a < b for a, b in zip(*correct, strict=True))
    assert first.p == pytest.approx(stats.binomtest(ahead, ahead + behind).pvalue)
    assert first.test == "mcnemar"
    expected = stats.ttest_rel(sides[0].outcomes.nats, sides[1].outcomes.nats).pvalue
    assert second.p == pytest.approx(expected, abs=0.01)
    assert second.test == "paired_bootstrap"


def test_p_is_adjusted_over_all_models_and_measurements():
    generator = np.random.default_rng(1)
    base = generator.normal(30, 3, 50)
    every = {
        f"m{shift}": results(perplexity((base + generator.normal(shift, 1, 50)).tolist()))
        for shift in (0.0, 0.3, 0.4, 2.0)
    }
    found = compare({"base": results(perplexity(base.tolist())), **every}, "base")
    assert [c.model for c in found] == list(every)
    assert [c.p_holm for c in found] == holm([c.p for c in found])
    assert [c.inside_noise for c in found] == [c.p_holm >= 0.05 for c in found]
    assert found[0].inside_noise
    assert not found[3].inside_noise


def test_models_on_the_same_weights_are_inside_the_noise(pair):
    found = compare({"one": pair["whole"], "two": pair["whole"]}, "one")
    assert all(c.inside_noise and c.p_holm == 1 and c.difference == 0 for c in found)


def test_other_items_are_not_compared(pair):
    """Would see: two draws of rows compared in pairs as if they were one."""
    other = measured(tiny_model(dtype=torch.float64), rows=[*ROWS[1:], ROWS[0]])
    with pytest.raises(InputError, match="rows"):
        compare(pair | {"other": other}, "whole")
    other = measured(tiny_model(dtype=torch.float64), text=TEXT.replace("Line 3", "Line 4"))
    with pytest.raises(InputError, match="chunks"):
        compare(pair | {"other": other}, "whole")


def test_other_tokens_of_the_same_rows_leave_accuracy_alone_to_compare():
    one = results(accuracy([1, 0, 1], [3.0, 4.0, 5.0], [2, 2, 2]))
    two = results(accuracy([1, 1, 1], [3.0, 4.0, 5.0], [2, 3, 2]))
    assert [c.metric for c in compare({"one": one, "two": two}, "one")] == ["accuracy"]
    one, two = (results(perplexity([3.0, 4.0], tokens, "rows")) for tokens in ([2, 2], [2, 3]))
    with pytest.raises(InputError, match="tokens"):
        compare({"one": one, "two": two}, "one")


def test_what_cannot_be_compared_is_refused(pair):
    bare = Measurement(name="c", metric="perplexity", value=3.0, count=5)
    with pytest.raises(InputError, match="bare on c"):
        compare({"bare": results(bare), "full": results(perplexity([1.0, 2.0]))}, "full")
    with pytest.raises(InputError, match="bare on c"):
        compare({"bare": results(bare), "full": results(perplexity([1.0, 2.0]))}, "bare")
    with pytest.raises(InputError, match=r"c \(perplexity\)"):
        compare({"a": results(bare), "b": pair["whole"]}, "b")
    for given in ({}, {"a": pair["whole"]}, {"b": pair["whole"], "c": pair["whole"]}):
        with pytest.raises(InputError, match="'a'"):
            compare(given, "a")


def test_outcomes_are_of_one_set_of_items():
    for wrong in (
        {"nats": [1.0], "tokens": [1, 2]},
        {"nats": [1.0, 2.0], "tokens": [1, 2], "correct": [1]},
        {"nats": [], "tokens": []},
    ):
        with pytest.raises(InputError, match="items"):
            Outcomes.parse({"items": "x", **wrong}, "test")
    with pytest.raises(InputError, match=r"tokens\.0: "):
        Outcomes.parse({"items": "x", "nats": [1.0], "tokens": [0]}, "test")
    plain = perplexity([1.0]).model_dump()
    with pytest.raises(InputError, match="correct"):
        Measurement.parse(plain | {"metric": "accuracy"}, "test")


def test_lines_say_plainly_what_was_found():
    correct = [[1] * 33 + [0] * 31, [1] * 31 + [0] * 33]
    nats = [[4.0 - 0.5 * (i % 2) for i in range(64)], [4.5] * 64]
    one, two = (accuracy(c, n) for c, n in zip(correct, nats, strict=True))
    chunks = [perplexity([30.0 + i + shift for i in range(20)]) for shift in (1, 0)]
    found = compare(
        {"LayerIF": results(one, chunks[0]), "uniform": results(two, chunks[1])}, "uniform"
    )
    lines = comparison_lines(found)
    assert lines[0] == (
        "t accuracy: LayerIF 51.6% against uniform 48.4%: +3.1 points [+0.0, +7.8], p = 0.5: "
        "inside the noise"
    )
    assert lines[1].startswith("t answer loss: LayerIF 3.750 against uniform 4.500: -0.750 [-0.8")
    assert lines[1].endswith("], p < 0.001: better")
    assert lines[2].startswith("c perplexity: LayerIF 57.40 against uniform 51.94: +5.46 [+4.")
    assert lines[2].endswith("], p < 0.001: worse")
    assert "adjusted for 3 comparisons (Holm)" in lines[3]
    single = compare({"a": results(perplexity([30.0])), "b": results(perplexity([31.0]))}, "b")
    assert comparison_lines(single) == [
        "c perplexity: a 20.09 against b 22.20: -2.11, p = 1: inside the noise"
    ]


def test_generated_answers_compare_with_generated_answers_alone():
    outcomes = [Outcomes(items="rows", correct=[1, 0, 1, right]) for right in (0, 1)]
    one, two = (
        results(
            Measurement(
                name="t",
                metric="accuracy",
                scoring="generation",
                value=sum(o.correct) / 4,
                count=4,
                outcomes=o,
            )
        )
        for o in outcomes
    )
    (found,) = compare({"one": one, "two": two}, "one")
    assert (found.metric, found.scoring, found.difference) == ("accuracy", "generation", 0.25)
    assert comparison_lines([found])[0].startswith("t (generation) accuracy: two 75.0% against one")
    likelihood = results(accuracy([1, 0, 1, 0], [1.0] * 4))
    with pytest.raises(InputError, match=r"t \(accuracy\), .*t \(accuracy by gen"):
        compare({"one": one, "two": likelihood}, "one")
