"""`layerif tasks`, and the style of prompts on the command line and in recipes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import LayerScores, Results
from layerif.data import corpus_names, load_task, task_names

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    "{% if thoughts is defined %}({{ thoughts }}, {{ tone }}){% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that chats."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def test_the_list_has_every_name(layerif):
    status, out, _ = layerif("tasks")
    assert status == 0
    names = [*task_names(), *corpus_names()]
    assert all(name in out for name in names)
    status, out, _ = layerif("tasks", "--json")
    listed = json.loads(out)
    assert [row["name"] for row in listed] == names
    assert all(row["asks"] and row["source"] for row in listed)
    assert all(bool(row["candidates"]) == (row["name"] in task_names()) for row in listed)


def test_the_list_imports_no_torch():
    code = (
        "import sys; from layerif.cli import app\n"
        "try: app(['tasks'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_show_prints_what_a_run_draws(layerif):
    status, out, _ = layerif("tasks", "show", "facts", "--split", "train", "--count", 2)
    assert status == 0
    drawn = load_task("facts").sample("train", 2, 0)
    for example in drawn:
        assert example.prompt in out
        assert f"✓ {example.completion}" in out
        for choice in example.choices:
            assert (f"✓ {choice}" in out) == (choice == example.completion) or choice in out
    assert out.count("✓") == 2
    status, out, _ = layerif(
        *["tasks", "show", "facts", "--split", "train", "--count", 2, "--style", "plain", "--json"]
    )
    shown = json.loads(out)
    assert (shown["task"], shown["split"], shown["style"]) == ("facts", "train", "plain")
    for row, example in zip(shown["examples"], drawn, strict=True):
        assert [c["completion"] for c in row["candidates"]] == list(example.choices)
        assert row["answer"] == example.answer
        assert example.prompt.endswith(
            "### Instruction:\n" + row["candidates"][0]["prompt"] + "\n### Response:\n"
        )


def test_show_marks_the_right_context(layerif, data_dir):
    status, out, _ = layerif("tasks", "show", "winogrande", "--data-dir", data_dir, "--count", 1)
    assert status == 0
    (example,) = load_task("winogrande", data_dir=data_dir).sample("test", 1, 0)
    for index, (context, completion) in enumerate(example.candidates()):
        mark = "✓" if index == example.answer else " "
        assert f"{mark} {context}{completion}\n" in out


def test_show_with_the_template_of_a_model(layerif, model):
    options = ["tasks", "show", "facts", "--style", "chat", "--count", 1]
    status, out, _ = layerif(*options, "--model", model)
    assert status == 0
    assert "\n<s><Read the passage" in out
    status, _, err = layerif(*options)
    assert status == 2
    assert "no model is named" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["fact"], "did you mean facts?"),
        (["facts", "--split", "dev"], "'--split'"),
        (["facts", "--count", 0], "at least 1, not 0"),
        (["agreement", "--style", "chat", "--model", "MODEL"], "task agreement goes on with"),
    ],
)
def test_refusals(layerif, model, options, message):
    options = [model if option == "MODEL" else option for option in options]
    status, out, err = layerif("tasks", "show", *options)
    assert (status, out) == (2, "")
    assert message in err


def test_style_of_scores_and_results_is_recorded(layerif, model, tmp_path):
    options = ["--model", model, "--style", "chat"]
    status, _, err = layerif(
        *["score", *options, "--task", "facts", "--rank", 2, "--train-samples", 4],
        *["--validation-samples", 2, "--out", tmp_path / "run"],
    )
    assert status == 0, err
    assert LayerScores.load(tmp_path / "run").record.task["style"] == "chat"
    status, _, err = layerif(
        *["evaluate", *options, "--tasks", "facts", "--samples", 4, "--out", tmp_path / "r.json"]
    )
    assert status == 0, err
    assert Results.load(tmp_path / "r.json").how["data"]["facts"]["style"] == "chat"
    status, _, err = layerif("evaluate", *options, "--tasks", "facts,agreement")
    assert status == 2
    assert "task agreement" in err


def test_template_options_are_recorded_and_replayed(layerif, model, tmp_path):
    chosen = ["--template-option", "thoughts=false", "--template-option", "tone=a=b, dry"]
    base = ["evaluate", "--model", model, "--tasks", "facts", "--samples", 2, "--style", "chat"]
    found = {}
    for name, options in {"plain": [], "chosen": chosen}.items():
        status, _, err = layerif(*base, *options, "--out", tmp_path / f"{name}.json")
        assert status == 0, err
        found[name] = Results.load(tmp_path / f"{name}.json")
    of_task = found["chosen"].how["data"]["facts"]
    assert of_task["template_options"] == {"thoughts": False, "tone": "a=b, dry"}
    assert found["plain"].measurements != found["chosen"].measurements
    recipe = tmp_path / "chosen.recipe.yaml"
    status, _, err = layerif("run", recipe, "--out", tmp_path / "again.json")
    assert status == 0, err
    assert Results.load(tmp_path / "again.json").measurements == found["chosen"].measurements
    status, out, err = layerif("tasks", "show", "facts", *base[-2:], "--model", model, *chosen)
    assert status == 0, err
    assert "(False, a=b, dry)" in out
    for options, message in (
        (["--template-option", "thought=1"], "thoughts, tone"),
        (["--template-option", "thoughts"], "NAME=VALUE"),
        (["--style", "plain", *chosen], "variables of a chat template"),
    ):
        status, out, err = layerif(*base, *options)
        assert (status, out) == (2, "")
        assert message in err


def test_styles_of_a_recipe(layerif, model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Paragraph {i} of a text about {i * i} birds." for i in range(90)))
    recipe = {
        "model": str(model),
        "out": str(tmp_path / "run"),
        "score": {
            "task": "facts",
            "style": "plain",
            "train_samples": 4,
            "validation_samples": 2,
            "rank": 2,
        },
        "sparsity": {"target": 0.5},
        "prune": {"calibration": str(text), "calibration_samples": 2, "context_length": 32},
        "evaluate": {
            "tasks": ["facts"],
            "style": "chat",
            "template_options": {"thoughts": False},
            "samples": 2,
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    status, _, err = layerif("run", path)
    assert status == 0, err
    assert LayerScores.load(tmp_path / "run").record.task["style"] == "plain"
    dense = Results.load(tmp_path / "run" / "dense-results.json")
    assert dense.how["data"]["facts"]["style"] == "chat"
    assert dense.how["data"]["facts"]["template_options"] == {"thoughts": False}


def test_answers_by_generation(layerif, model, tmp_path):
    path = tmp_path / "r.json"
    options = ["evaluate", "--model", model, "--tasks", "facts", "--samples", 3]
    status, out, err = layerif(*options, "--scoring", "generation", "--out", path)
    assert status == 0, err
    assert "generation" in out
    # A random model does not know the form of the answers.
    assert "3 of 3 answers on facts" in out
    results = Results.load(path)
    assert results.measurements[0].scoring == results.how["scoring"] == "generation"
    assert results.measurements[0].details["parse_failure_rows"] == [0, 1, 2]

    # Likelihoods do not compare with what was generated; that is said before anything runs.
    status, out, err = layerif(*options, "--against", path)
    assert (status, out) == (2, "")
    assert "facts (generation), and facts" in err
    status, out, _ = layerif(*options, "--against", path, "--scoring", "generation")
    assert status == 0
    assert "facts (generation) accuracy: " in out

    status, out, err = layerif(*options, "--scoring", "generation", "--tasks", "agreement")
    assert (status, out) == (2, "")
    assert "task agreement" in err
    status, _, err = layerif(*options, "--scoring", "guess")
    assert status == 2
    assert "Invalid value for '--scoring'" in err


def test_scoring_of_a_recipe(layerif, model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Paragraph {i} of a text about {i * i} birds." for i in range(90)))
    recipe = {
        "model": str(model),
        "out": str(tmp_path / "run"),
        "score": {"task": "facts", "train_samples": 4, "validation_samples": 2, "rank": 2},
        "sparsity": {"target": 0.5},
        "prune": {"calibration": str(text), "calibration_samples": 2, "context_length": 32},
        "evaluate": {"tasks": ["agreement"], "scoring": "generation", "samples": 2},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    status, _, err = layerif("run", path)
    assert status == 2
    assert "task agreement" in err
    assert not (tmp_path / "run").exists()

    recipe["evaluate"] |= {"tasks": ["facts"]}
    path.write_text(yaml.safe_dump(recipe))
    status, out, err = layerif("run", path)
    assert status == 0, err
    assert "2 of 2 answers of uniform on facts" in out
    compared = json.loads((tmp_path / "run" / "comparison.json").read_text())["comparisons"]
    assert [(c["metric"], c["scoring"]) for c in compared] == [("accuracy", "generation")]
