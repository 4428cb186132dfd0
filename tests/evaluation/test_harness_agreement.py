"""Our own prompts and likelihoods against lm-evaluation-harness's, candidate by candidate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from lm_eval import tasks as lm_eval_tasks
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml
from transformers import AutoModelForCausalLM, LlamaConfig

from helpers import harness_rows
from helpers.tiny import SHAPE, WIDE, tiny_tokenizer
from layerif.data import Example, load_task
from layerif.data.catalogue import CATALOGUE
from layerif.errors import InputError
from layerif.evaluation.accuracy import task_measurement
from layerif.evaluation.harness import load_harness
from layerif.evaluation.harness.model import HarnessModel

pytestmark = pytest.mark.usefixtures("no_network")

UPSTREAM = Path(lm_eval_tasks.__file__).parent
UPSTREAM_FILES = {
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "rte": "glue/rte/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
}
Pair = tuple[str, str]


def asked(task: Any, rows: list[int] | None = None) -> list[tuple[list[Any], int]]:
    """The requests of each row of an lm-eval task, and the right one of them."""
    task.set_config(key="num_fewshot", value=0)
    task.build_all_requests(samples=rows)
    docs = list(task.eval_docs)
    found: dict[int, list[Any]] = {}
    for instance in task.instances:
        found.setdefault(instance.doc_id, []).append(instance)
    numbers = sorted(rows) if rows else range(len(docs))
    gold = [
        (task.doc_to_text if task.multiple_input else task.doc_to_target)(docs[n]) for n in numbers
    ]
    return list(zip(found.values(), gold, strict=True))


def scored(pairs: tuple[Pair, ...] | list[Pair]) -> tuple[Pair, ...]:
    """Pairs with the blanks at the end of a context in the continuation, where lm-eval has them."""
    return tuple(
        (context.rstrip(), context[len(context.rstrip()) :] + continuation)
        for context, continuation in pairs
    )


def from_folder(name: str, data_dir: Path, rows: list[int] | None = None) -> Any:
    (task,) = load_harness([name], data_dir=data_dir).tasks.values()
    return asked(task, rows)


def our_examples(name: str, data_dir: Path) -> dict[tuple[Pair, ...], Example]:
    """Every example of our task in the style harness, by its candidates."""
    task = load_task(name, data_dir=data_dir, style="harness")
    assert task.origin["style"] == "harness"
    return {e.candidates(): e for rows in task.splits.values() for e in rows}


@pytest.mark.parametrize("name", harness_rows.NAMES)
def test_four_ways_to_one_prompt(name: str, tmp_path: Path) -> None:
    """lm-eval's own task file on the hub's rows is the oracle of our task file, and of our table.

    Would see: a word, a blank or a capital that differs, candidates in another order, another
    answer.
    """
    config = load_yaml(UPSTREAM / UPSTREAM_FILES[name])
    config.pop("tag", None)
    split = config.get("test_split") or config["validation_split"]
    hub = datasets.Dataset.from_list(harness_rows.HUB_ROWS[name])
    splits = dict.fromkeys(("train", "validation", "test"), hub)
    assert split == harness_rows.TESTED[name]
    oracle = [
        (scored([request.args for request in requests]), gold)
        for requests, gold in asked(
            ConfigurableTask(config={**config, "custom_dataset": lambda **_: splits})
        )
    ]

    harness_rows.write_folder(tmp_path, name)
    ours = [
        (scored([request.args for request in requests]), gold)
        for requests, gold in from_folder(name, tmp_path)
    ]
    assert [(pairs, int(gold)) for pairs, gold in ours] == [(p, int(g)) for p, g in oracle]

    examples = our_examples(name, tmp_path)
    assert [examples[pairs].answer for pairs, _ in oracle] == [int(gold) for _, gold in oracle]

    form = CATALOGUE[name].harness
    assert form is not None
    spec = replace(CATALOGUE[name], **form)
    rows = spec.hub.read(
        spec.columns,
        lambda columns: [{c: row[c] for c in columns} for row in harness_rows.HUB_ROWS[name]],
    )
    of_hub = [spec.example(row, str) for row in rows]
    assert [(scored(e.candidates()), e.answer) for e in of_hub if e] == [
        (pairs, int(gold)) for pairs, gold in oracle
    ]


def likelihoods(model: Any, tokenizer: Any, pairs: list[Pair]) -> np.ndarray:
    """Our log-likelihood of each completion."""
    texts = [Example(*pair) for pair in pairs]
    outcomes = task_measurement(model, tokenizer, texts, max_length=4096).outcomes
    assert outcomes is not None
    assert outcomes.count == len(pairs)
    return -np.array(outcomes.nats)


@pytest.mark.parametrize("name", harness_rows.NAMES)
def test_likelihoods_and_accuracies_are_the_same(name: str, tmp_path: Path) -> None:
    """On a tiny model in float64, of the right candidate and of the wrong ones."""
    harness_rows.write_folder(tmp_path, name)
    agree(wide_model(), tiny_tokenizer(bos=True), name, tmp_path, None, tolerance=1e-6)


@pytest.mark.parametrize("name", harness_rows.NAMES)
def test_likelihoods_of_real_rows_are_the_same(name: str, data_dir: Path) -> None:
    agree(wide_model(), tiny_tokenizer(), name, data_dir, [0, 3, 7], tolerance=1e-6)


@pytest.mark.parametrize("name", harness_rows.NAMES)
def test_the_same_rows_are_drawn(name: str, data_dir: Path) -> None:
    """Would see: two figures of a task that differ by the rows that were drawn for them."""
    tasks = load_harness([name], samples=6, seed=3, data_dir=data_dir)
    assert tasks.rows is not None
    requests = [found for found, _ in asked(tasks.tasks[name], tasks.rows[name])]
    theirs = {scored([request.args for request in found]) for found in requests}
    ours = load_task(name, data_dir=data_dir, style="harness").sample("test", 6, 3)
    assert theirs == {scored(example.candidates()) for example in ours}


def test_rows_beyond_ours_follow_and_a_task_that_we_cannot_read_is_drawn(tmp_path: Path) -> None:
    harness_rows.write_folder(tmp_path, "arc_easy")
    count = len(harness_rows.HUB_ROWS["arc_easy"])
    everything = load_harness(["arc_easy"], samples=count, data_dir=tmp_path)
    assert everything.rows == {"arc_easy": list(range(count))}
    one, two = (load_harness(["arc_easy"], samples=n, data_dir=tmp_path).rows for n in (1, 2))
    assert one is not None
    assert two is not None
    assert set(one["arc_easy"]) < set(two["arc_easy"])
    (tmp_path / "arc_easy" / "train.parquet").unlink()  # ours is divided from it
    drawn = load_harness(["arc_easy"], samples=2, data_dir=tmp_path).rows
    assert drawn is not None
    assert len(drawn["arc_easy"]) == 2


@pytest.mark.slow
@pytest.mark.real_model
def test_a_real_model_is_measured_alike(smollm2: Any, data_dir: Path) -> None:
    for name in harness_rows.NAMES:
        table = pyarrow.parquet.read_table(data_dir / name / f"{harness_rows.TESTED[name]}.parquet")
        lengths = [len(str(row)) for row in table.to_pylist()]
        shortest = sorted(range(len(lengths)), key=lengths.__getitem__)[:2]
        agree(*smollm2, name, data_dir, sorted(shortest), tolerance=1e-4)


def wide_model() -> Any:
    """A tiny model whose context holds a passage of BoolQ, byte by byte."""
    config = LlamaConfig(**{**SHAPE, "max_position_embeddings": 4096}, **WIDE)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


def agree(
    model: Any,
    tokenizer: Any,
    name: str,
    data_dir: Path,
    rows: list[int] | None,
    *,
    tolerance: float,
) -> None:
    """lm-eval's likelihoods and accuracies of a task's rows are ours."""
    (task,) = load_harness([name], data_dir=data_dir).tasks.values()
    questions = asked(task, rows)
    examples = our_examples(name, data_dir)
    ours = [examples[scored([r.args for r in requests])] for requests, _ in questions]
    pairs = [pair for example in ours for pair in example.candidates()]
    requests = [request for found, _ in questions for request in found]
    answers = HarnessModel(model, tokenizer, 2).loglikelihood(requests)
    np.testing.assert_allclose(
        likelihoods(model, tokenizer, pairs),
        [likelihood for likelihood, _ in answers],
        rtol=tolerance,
        atol=tolerance,
        err_msg=name,
    )

    docs, taken = list(task.eval_docs), iter(answers)
    numbers = sorted(rows) if rows else range(len(docs))
    reported = [
        task.process_results(docs[number], [next(taken) for _ in found])
        for number, (found, _) in zip(numbers, questions, strict=True)
    ]
    measured = task_measurement(model, tokenizer, ours, max_length=4096)
    assert measured.outcomes is not None
    assert measured.outcomes.correct == [row["acc"] for row in reported]
    if "acc_norm" in reported[0] and name != "openbookqa":
        mean = np.mean([row["acc_norm"] for row in reported])
        assert measured.details["accuracy_per_character"] == pytest.approx(mean)


@pytest.mark.parametrize("name", ["mrpc", "facts", "agreement"])
def test_tasks_without_the_style_say_which_have_it(name: str) -> None:
    listed = ", ".join(harness_rows.NAMES)
    with pytest.raises(InputError, match=f"task {name} .* {listed}"):
        load_task(name, style="harness")


def test_a_users_own_file_has_its_own_words(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(InputError, match="harness"):
        load_task(path, style="harness")
