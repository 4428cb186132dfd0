"""Tasks and corpora by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from layerif.data import (
    Corpus,
    Task,
    corpus_names,
    has_style,
    load_corpus,
    load_sources,
    load_task,
    task_names,
)
from layerif.errors import InputError


def test_names() -> None:
    assert {"agreement", "commonsense_qa", "mrpc", "openbookqa"} <= set(task_names())
    assert corpus_names() == ["python-docs", "wikitext2"]
    assert task_names() == sorted(task_names())


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"did you mean mrpc\?.*agreement.*openbookqa"):
        load_task("mrcp")
    with pytest.raises(InputError, match=r"'qqqq'; known are agreement"):
        load_task("qqqq")
    with pytest.raises(InputError, match=r"did you mean wikitext2\?.*python-docs"):
        load_corpus("wikitext")


def test_missing_files_are_not_taken_for_names(tmp_path: Path) -> None:
    for name in ("rows.jsonl", tmp_path / "rows.jsonl", f"{tmp_path}/rows"):
        with pytest.raises(InputError, match="exist"):
            load_task(name)
    with pytest.raises(InputError, match=r"text\.txt .*exist"):
        load_corpus(tmp_path / "text.txt")


def test_sources_are_tasks_and_corpora(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"prompt": "{i}", "completion": "c"}}\n' for i in range(9))
    )
    (tmp_path / "text.md").write_text("one\n\ntwo")
    names = ["agreement", "python-docs", tmp_path / "rows.jsonl", str(tmp_path / "text.md")]
    sources = load_sources(names)
    assert [type(source) for source in sources] == [Task, Corpus, Task, Corpus]
    assert [source.name for source in sources] == [str(name) for name in names]
    with pytest.raises(InputError, match=r"did you mean python-docs\?"):
        load_sources(["python_docs"])


def test_styles_that_change_a_task_or_are_refused() -> None:
    found = {
        name: [has_style(name, style) for style in ("alpaca", "plain", "chat", "harness")]
        for name in ("facts", "agreement", "rte", "hellaswag", "rows.jsonl", "self")
    }
    every, two = [True] * 4, [False, False, True, True]
    assert found == {
        **{"facts": every, "agreement": two, "rte": every},
        **{"hellaswag": two, "rows.jsonl": two, "self": [False] * 4},
    }


def test_importing_tasks_is_light() -> None:
    code = (
        "import sys, layerif.data;"
        "print([m for m in ('torch','transformers','datasets','pyarrow') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
