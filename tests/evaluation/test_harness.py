"""The bridge to lm-evaluation-harness: what it reports, as results, and on the command line."""

from __future__ import annotations

import logging
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from lm_eval.api.metrics import mean_stderr
from lm_eval.tasks import TaskManager

from helpers import harness_rows
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import Results
from layerif.errors import InputError, MissingDependencyError, NumericalError
from layerif.evaluation.comparison import compare
from layerif.evaluation.harness import HarnessTasks, harness_results, load_harness
from layerif.evaluation.statistics import wilson_interval
from layerif.report.tables import reported_lines, results_table

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory of all seven tasks; BoolQ has no train split."""
    path = tmp_path_factory.mktemp("data")
    for name in harness_rows.NAMES:
        harness_rows.write_folder(path, name, train=name != "boolq")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def test_all_seven_tasks_give_measurements(folder: Path, tmp_path: Path) -> None:
    tasks = load_harness(harness_rows.NAMES, data_dir=folder)
    results = harness_results(tiny_model(), tiny_tokenizer(), tasks)
    assert [m.name for m in results.measurements] == harness_rows.NAMES
    for m in results.measurements:
        rows = len(harness_rows.HUB_ROWS[m.name])
        assert (m.metric, m.scoring, m.count) == ("accuracy", "harness", rows)
        assert m.outcomes is not None
        assert len(m.outcomes.correct) == rows
        hits = sum(m.outcomes.correct)
        assert m.value == pytest.approx(hits / rows)
        assert (m.low, m.high) == pytest.approx(wilson_interval(hits, rows))
        metrics = m.details["metrics"]
        assert metrics[m.details["figure"]] == pytest.approx(m.value)
        assert metrics["acc_stderr,none"] == pytest.approx(mean_stderr(m.outcomes.correct))
        assert ("acc_norm,none" in metrics) == (m.name not in ("boolq", "rte", "winogrande"))
        assert m.details["shots"] == 0
        assert m.details["task_version"] == (2.0 if m.name == "boolq" else 1.0)
    chance = {m.name: m.details["chance"] for m in results.measurements}
    assert chance["boolq"] == 0.5
    assert chance["arc_easy"] == pytest.approx((1 / 3 + 1 / 4 + 1 / 4) / 3)
    assert re.fullmatch(r"0\.4\.\d+", results.how["harness"]["lm_eval"])
    table = results_table({"tiny": results}, "Evaluation")
    shown = [str(cell) for cell in table.columns[0].cells]
    assert shown == [f"{name} (harness)" for name in harness_rows.NAMES]
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results


def test_rows_are_drawn_in_order_and_told_apart(folder: Path) -> None:
    def outcomes(**options: Any) -> Any:
        tasks = load_harness(["arc_easy"], data_dir=folder, **options)
        return tasks.rows, harness_results(tiny_model(), tiny_tokenizer(), tasks).measurements[0]

    _, everything = outcomes()
    rows, two = outcomes(samples=2, seed=3)
    (numbers,) = rows.values()
    assert numbers == sorted(numbers)
    assert two.outcomes.correct == [everything.outcomes.correct[n] for n in numbers]
    assert outcomes(samples=2, seed=3)[1] == two
    drawn = {seed: outcomes(samples=2, seed=seed) for seed in range(4)}
    assert len({m.outcomes.items for _, m in drawn.values()}) == len(
        {str(rows) for rows, _ in drawn.values()}
    )
    assert len({str(rows) for rows, _ in drawn.values()}) > 1


def test_models_are_compared_in_pairs(folder: Path) -> None:
    tasks = load_harness(["rte", "arc_easy"], data_dir=folder)
    tokenizer = tiny_tokenizer()
    results = {
        name: harness_results(tiny_model(name), tokenizer, tasks) for name in ("llama", "gpt2")
    }
    found = compare(results, "llama")
    assert [(c.name, c.metric, c.scoring) for c in found] == [
        ("rte", "accuracy", "harness"),
        ("arc_easy", "accuracy", "harness"),
    ]


def test_shots_are_the_same_for_every_model(folder: Path) -> None:
    """Would see: a generator that a first evaluation has moved on."""
    tasks = load_harness(["arc_easy"], shots=2, data_dir=folder)
    one, other = (harness_results(tiny_model(), tiny_tokenizer(), tasks) for _ in range(2))
    assert one == other
    assert one.measurements[0].details["shots"] == 2
    bare = load_harness(["arc_easy"], data_dir=folder)
    none = harness_results(tiny_model(), tiny_tokenizer(), bare).measurements[0]
    assert none.outcomes is not None
    assert one.measurements[0].outcomes is not None
    assert none.outcomes.items != one.measurements[0].outcomes.items
    (task,) = tasks.tasks.values()
    assert all(request.args[0].count("\nAnswer:") == 3 for request in task.instances)


def own_task(folder: Path, name: str, rows: list[dict[str, Any]], **config: Any) -> str:
    """A task file of a user's own; returns its path."""
    table = folder / f"{name}.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    read = {"data_files": {"test": str(table)}, "cache_dir": str(folder / "cache")}
    value = {"task": name, "dataset_path": "parquet", "dataset_kwargs": read, "test_split": "test"}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**value, **config}))
    return str(path)


TEXTS = [{"text": "Ice melts in the sun."}, {"text": "Snow  falls."}, {"text": "It is cold there."}]


def test_a_perplexity_per_word(tmp_path: Path) -> None:
    path = own_task(
        tmp_path,
        "texts",
        TEXTS,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[
            {"metric": "word_perplexity"},
            {"metric": "bits_per_byte"},
        ],
    )
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    results = harness_results(model, tokenizer, load_harness([path]))
    (found,) = results.measurements
    nats = []
    for row in TEXTS:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(row["text"])["input_ids"]]])
        log_probabilities = model(ids).logits[0].log_softmax(-1)
        nats.append(-sum(log_probabilities[t - 1, ids[0, t]].item() for t in range(1, ids.numel())))
    assert (found.name, found.metric, found.count) == ("texts", "perplexity", 5 + 2 + 4)
    assert found.value == pytest.approx(math.exp(sum(nats) / 11))
    assert found.outcomes is not None
    assert found.outcomes.nats == pytest.approx(nats, abs=1e-5)
    assert found.outcomes.tokens == [5, 2, 4]
    assert found.details["unit"] == "words"
    assert found.details["metrics"]["bits_per_byte,none"] > 0


def test_generated_answers_and_figures_that_are_no_accuracy(tmp_path: Path) -> None:
    """Would see: a figure dropped, or one called an accuracy that is none."""
    rows = [{"q": "One and one", "a": "two"}, {"q": "Two and two", "a": "four"}]
    shared = {
        "output_type": "generate_until",
        "doc_to_text": "{{q}}:",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
    }
    exact = own_task(tmp_path, "exact", rows, **shared, metric_list=[{"metric": "exact_match"}])
    bleu = own_task(tmp_path, "translated", rows, **shared, metric_list=[{"metric": "bleu"}])
    results = harness_results(tiny_model(), tiny_tokenizer(), load_harness([exact, bleu]))
    (found,) = results.measurements
    assert (found.name, found.metric, found.value) == ("exact", "accuracy", 0.0)
    assert found.outcomes is not None
    assert (found.outcomes.correct, found.details["figure"]) == ([0, 0], "exact_match,none")
    assert "chance" not in found.details
    reported = results.how["harness"]["reported"]
    assert list(reported) == ["translated"]
    assert "bleu,none" in reported["translated"]
    assert reported_lines(results) == ["translated (harness): bleu,none 0"]


def test_groups_are_measured_member_by_member(tmp_path: Path) -> None:
    rows = [{"q": f"Is {i} even?", "answer": i % 2} for i in range(5)]
    shared = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": ["yes", "no"],
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    for name in ("some", "others"):
        own_task(tmp_path, name, rows[name == "some" :], **shared)
    group = {
        "group": "all_of_them",
        "task": ["some", "others"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(group))
    found = TaskManager(include_path=str(tmp_path), include_defaults=False).load(["all_of_them"])
    tasks = HarnessTasks(found["tasks"], found["groups"], None)
    results = harness_results(tiny_model(), tiny_tokenizer(), tasks)
    assert [(m.name, m.count) for m in results.measurements] == [("some", 4), ("others", 5)]
    mean = sum(m.value * m.count for m in results.measurements) / 9
    reported = results.how["harness"]["reported"]["all_of_them"]
    assert reported["acc,none"] == pytest.approx(mean)
    assert reported_lines(results)[0].startswith(f"all_of_them (harness): acc,none {mean:.4g}")


def test_nothing_is_left_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = tiny_model().train(), tiny_tokenizer()
    tokenizer.pad_token = None
    logger = logging.getLogger("lm_eval")

    def state() -> list[Any]:
        switches = [logger.level, list(logger.handlers), logger.propagate, sys.stdout, sys.stderr]
        legacy = np.random.get_state()  # noqa: NPY002
        drawn = [random.getstate(), str(legacy), torch.get_rng_state().tolist()]
        bars = [sys.modules[f"lm_eval.{name}"].tqdm for name in ("api.task", "models.huggingface")]
        weights = {name: weight.clone() for name, weight in model.state_dict().items()}
        return [switches, drawn, bars, datasets.is_progress_bar_enabled(), str(weights)]

    before = state()
    harness_results(model, tokenizer, load_harness(["arc_easy"], shots=1, data_dir=folder))
    assert state() == before
    assert model.training
    assert tokenizer.pad_token is None
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    code = (
        "import os; before = dict(os.environ)\n"
        "from layerif.evaluation.harness import load_harness\n"
        f"load_harness(['rte'], data_dir=__import__('pathlib').Path({str(folder)!r}))\n"
        "print(os.environ == before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_likelihoods_that_are_not_finite_stop_the_run(folder: Path) -> None:
    model = tiny_model()
    model.get_output_embeddings().weight.data[5] = torch.nan
    with pytest.raises(NumericalError, match=r"likelihood of ' .*finite"):
        harness_results(model, tiny_tokenizer(), load_harness(["rte"], data_dir=folder))


def test_a_row_too_long_for_the_model_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"sentence1": "Long. " * 40, "sentence2": "Short.", "label": 1}] * 2
    (tmp_path / "rte").mkdir()
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), tmp_path / "rte" / "validation.parquet"
    )
    harness_results(tiny_model(), tiny_tokenizer(), load_harness(["rte"], data_dir=tmp_path))
    noted = capsys.readouterr().err
    assert noted.count("exceeds model's maximum length (128)") == 1


def test_lm_eval_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingDependencyError, match="lm-eval"):
        load_harness(["rte"])


def test_the_command_line(layerif: Any, model: Path, folder: Path, tmp_path: Path) -> None:
    base = ["evaluate", "--model", model, "--data-dir", folder]
    path = tmp_path / "alone.json"
    status, out, err = layerif(*base, "--harness", "rte,arc_easy", "--out", path)
    assert (status, err) == (0, "")
    assert "Measured on rte (harness): 2 rows" in out
    alone = Results.load(path)
    assert [m.name for m in alone.measurements] == ["rte", "arc_easy"]
    assert "max_length" not in alone.how

    status, out, err = layerif(
        *base, "--harness", "rte", "--tasks", "rte", "--style", "harness", "--json"
    )
    assert (status, err) == (0, "")
    both = Results.model_validate_json(out)
    assert [m.scoring for m in both.measurements] == ["likelihood", "harness"]
    assert both.measurements[0].value == both.measurements[1].value
    assert {"data", "harness"} <= both.how.keys()

    status, out, _ = layerif(*base, "--harness", "arc_easy", "--against", path)
    assert status == 0
    assert "arc_easy (harness) accuracy: " in out
    assert "p = 1: inside the noise" in out
    status, _, err = layerif(*base, "--tasks", "rte", "--against", path)
    assert status == 2
    assert "rte (harness), arc_easy (harness), and rte" in err


def test_refusals_come_before_the_model(layerif: Any, folder: Path, tmp_path: Path) -> None:
    write = pyarrow.parquet.write_table
    for name, table in (
        ("boolq", pyarrow.table({"passage": ["a"], "question": ["b"]})),
        ("hellaswag", pyarrow.table({"query": [], "endings": [], "label": []})),
    ):
        (tmp_path / name).mkdir()
        write(table, tmp_path / name / "validation.parquet")
    for arguments, message in (
        ([], "--tasks TASKS, --harness TASKS"),
        (["--tasks", "facts", "--shots", 1], "--shots"),
        (["--harness", "rte", "--shots", -1, "--data-dir", folder], "must not be negative"),
        (["--harness", "rte", "--samples", 0, "--data-dir", folder], "at least 1"),
        (
            ["--harness", "rte", "--samples", 3, "--data-dir", folder],
            "rte of lm-evaluation-harness",
        ),
        (["--harness", "boolq", "--shots", 2, "--data-dir", folder], "has no train.parquet"),
        (["--harness", "boolq", "--data-dir", tmp_path], "lacks the column label"),
        (["--harness", "hellaswag", "--data-dir", tmp_path], "has no rows"),
        (["--harness", "rte", "--data-dir", tmp_path], "'rte'"),
        (["--harness", "own.yaml"], "own.yaml"),
        (["--harness", "arc_eazy"], "did you mean arc_easy"),
        (["--harness", "rte,", "--data-dir", folder], "has no task, group or tag ''"),
    ):
        status, out, err = layerif("evaluate", "--model", "no/such/model", *arguments)
        assert (status, out) == (2, ""), arguments
        assert message in err, (arguments, err)


def test_tasks_that_run_code_are_refused(tmp_path: Path) -> None:
    path = own_task(
        tmp_path,
        "coded",
        TEXTS,
        output_type="generate_until",
        doc_to_text="{{text}}",
        doc_to_target="{{text}}",
        unsafe_code=True,
        metric_list=[{"metric": "exact_match"}],
    )
    with pytest.raises(InputError, match="coded"):
        load_harness([path])
    broken = tmp_path / "broken.yaml"
    broken.write_text(
        yaml.safe_dump({**yaml.safe_load(Path(path).read_text()), "doc_to_text": "{{x}}"})
    )
    with pytest.raises(InputError, match=r"broken\.yaml .*'x' is undefined"):
        load_harness([str(broken)])
