"""A user's own files: three formats, one task; and an error that finds the row."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from layerif.data import SPLITS, Task, load_task
from layerif.data.own import read_examples
from layerif.errors import InputError

Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows) -> Path:
    """Write the rows in the format of the path's ending."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        names = list(dict.fromkeys(name for row in rows for name in row))
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, names)
            table.writeheader()
            for row in rows:
                cells = {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}
                table.writerow(cells)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


TEXT = [
    {"prompt": f"Say {i},\n“once”.", "completion": f" {i}\n", "source": "me"} for i in range(40)
]
CHOICE = [
    {"prompt": f"{i} + 1 =", "choices": [f" {i}", f" {i + 1}"], "answer": 1} for i in range(40)
]


@pytest.mark.parametrize("rows", [TEXT, CHOICE], ids=["text", "choice"])
def test_formats_give_the_same_task(tmp_path: Path, rows: Rows) -> None:
    tasks = [load_task(write(tmp_path / f"rows{s}", rows)) for s in (".jsonl", ".csv", ".parquet")]
    assert tasks[0].splits == tasks[1].splits == tasks[2].splits
    assert tasks[0].origin["sha256"] == tasks[1].origin["sha256"] == tasks[2].origin["sha256"]
    assert {split: len(part) for split, part in tasks[0].splits.items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }
    assert len(tasks[0].origin["files"]["rows.jsonl"]) == 64


def test_answer_forms_are_the_same_example(tmp_path: Path) -> None:
    base = {"prompt": "2 + 2 =", "choices": [" 3", " 4"]}
    full = {**base, "answer": 1, "completion": " 4"}
    rows = [{**base, "answer": 1}, {**base, "answer": " 4"}, {**base, "completion": " 4"}, full]
    for suffix in (".jsonl", ".csv"):
        examples = read_examples(write(tmp_path / f"rows{suffix}", rows))
        assert len(examples) == 4
        assert {(e.completion, e.choices, e.answer) for e in examples} == {(" 4", (" 3", " 4"), 1)}


def test_rows_of_a_prompt_stay_together(tmp_path: Path) -> None:
    rows = [{"prompt": str(i % 30), "completion": f"{i}"} for i in range(90)]
    task = load_task(write(tmp_path / "rows.jsonl", rows))
    assert sum(map(len, task.splits.values())) == 90
    prompts = [{e.prompt for e in part} for part in task.splits.values()]
    assert [len(names) for names in prompts] == [24, 3, 3]
    assert len(set().union(*prompts)) == 30


def test_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", TEXT)
    assert load_task(path, seed=1).splits == load_task(path, seed=1).splits
    assert load_task(path, seed=1).splits != load_task(path, seed=2).splits


def folder_task(tmp_path: Path, train: Rows, validation: Rows, test: Rows) -> Task:
    files = ("train.jsonl", "validation.csv", "test.parquet")
    for name, rows in zip(files, (train, validation, test), strict=True):
        write(tmp_path / name, rows)
    return load_task(str(tmp_path))


def test_folder_is_used_as_it_is(tmp_path: Path) -> None:
    task = folder_task(tmp_path, TEXT[:20], TEXT[20:25], TEXT[25:])
    completions = [e.completion for split in SPLITS for e in task.splits[split]]
    assert completions == [row["completion"] for row in TEXT]
    assert [len(rows) for rows in task.splits.values()] == [20, 5, 15]
    assert sorted(task.origin["files"]) == ["test.parquet", "train.jsonl", "validation.csv"]


def test_folder_overlaps_are_dropped_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = folder_task(tmp_path, TEXT[:20], TEXT[18:25], TEXT[24:])
    assert [len(rows) for rows in task.splits.values()] == [18, 6, 16]
    assert task.origin["dropped"]["train"] == {"prompt in validation": 2}
    assert "2 train rows" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(InputError, match="another split"):
        folder_task(tmp_path, TEXT[:2], TEXT[:2], TEXT[2:])


@pytest.mark.parametrize(
    ("prompt", "completion", "noted"),
    [
        ("Queue:", "billing", True),
        ("The capital of France is", "Paris", True),
        ("Two and two are", "4", True),
        ("Queue:", " billing", False),
        ("Queue: ", "billing", False),
        ("Queue:\n", "billing", False),
        ("The end", ".", False),
        ('He said "', "yes", False),
        ("[INST]Hi[/INST]", "Yes", False),
        ("法国的首都是", "巴黎", False),
        ("答案：", "5", False),
    ],
)
def test_completions_that_run_on_are_noted_once(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    prompt: str,
    completion: str,
    noted: bool,
) -> None:
    """Would see: candidates without their blank accepted in silence, the usual mistake."""
    path = tmp_path / "own.jsonl"
    rows = [{"prompt": f"{i} {prompt}", "completion": completion} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    load_task(path)
    said = " ".join(capsys.readouterr().err.split())
    assert ("30 of 30 completions" in said) == noted
    assert said.count("without a blank") == noted
    assert (prompt[-12:] + completion in said) == noted


def test_candidates_that_run_on_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.jsonl"
    rows = [{"prompt": f"{i}:", "choices": ["a", " b"], "answer": 1} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    load_task(path)
    assert "30 of 60 completions" in " ".join(capsys.readouterr().err.split())


def test_folder_needs_one_file_a_split(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", TEXT)
    write(tmp_path / "test.csv", TEXT)
    with pytest.raises(InputError, match=r"train\.jsonl.*validation"):
        load_task(tmp_path)
    write(tmp_path / "train.csv", TEXT)
    with pytest.raises(InputError, match=r"train\.csv, train\.jsonl"):
        load_task(tmp_path)


@pytest.mark.parametrize("place", ["", "data"])
@pytest.mark.parametrize("validation", ["validation", "val", "valid", "dev"])
def test_folders_laid_out_as_on_the_hub(tmp_path: Path, place: str, validation: str) -> None:
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    write(folder / "train-00000-of-00002.parquet", TEXT[:12])
    write(folder / "train-00001-of-00002.parquet", TEXT[12:20])
    write(folder / f"{validation}.jsonl", TEXT[20:25])
    write(folder / "test-00000-of-00001-a09b74b3ef9c3b56.parquet", TEXT[25:])
    task = load_task(tmp_path)
    completions = [e.completion for split in SPLITS for e in task.splits[split]]
    assert completions == [row["completion"] for row in TEXT]
    assert len(task.origin["files"]) == 4


def test_shards_and_names_that_leave_a_choice_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", TEXT[:12])
    write(tmp_path / "test.csv", TEXT[25:])
    write(tmp_path / "dev.jsonl", TEXT[20:25])
    with pytest.raises(InputError, match="2 such"):
        load_task(tmp_path)
    write(tmp_path / "train-00001-of-00002.parquet", TEXT[12:20])
    load_task(tmp_path)
    write(tmp_path / "val.jsonl", TEXT[20:25])
    with pytest.raises(InputError, match=r"dev\.jsonl, val\.jsonl"):
        load_task(tmp_path)


def test_a_message_holds_a_part_of_what_a_file_says(tmp_path: Path) -> None:
    for row in ({"prompt": ["x" * 9999]}, {"prompt": "p", "choices": ["y" * 9999] * 2}):
        path = write(tmp_path / "rows.jsonl", [GOOD, {**GOOD, "answer": 0, **row}])
        with pytest.raises(InputError, match="row 2") as error:
            load_task(path)
        assert len(str(error.value)) < 600


GOOD = {"prompt": "p", "completion": "c"}
PAIR = {"prompt": "p", "choices": ["a", "b"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "", "completion": "c"}, "prompt .*empty"),
        ({"prompt": "p", "completion": " \n"}, "completion .*empty"),
        ({"prompt": "p", "completion": None}, "completion .*empty"),
        ({"prompt": 3, "completion": "c"}, "prompt .*not 3"),
        ({"prompt": "p", "completion": ["c"]}, r"completion .*\['c'\]"),
        ({"prompt": "p", "text": "c"}, "lacks completion; .* found prompt, text"),
        ({"text": "c"}, "lacks prompt and completion"),
        ({**GOOD, "answer": 0}, "no choices"),
        ({**PAIR, "answer": 2}, "answer 2 .*from 0 to 1"),
        ({**PAIR, "answer": -1}, "answer -1"),
        ({**PAIR, "answer": True}, "answer True"),
        ({**PAIR, "answer": "c"}, "answer 'c'"),
        ({**PAIR, "completion": "c"}, "answer 'c'"),
        ({**PAIR, "answer": 0, "completion": "b"}, "'b' .*'a'"),
        ({**PAIR, "answer": 0, "choices": "ab"}, "two texts, not 'ab'"),
        ({**PAIR, "answer": 0, "choices": ["a"]}, "two texts"),
        ({**PAIR, "answer": 0, "choices": ["a", 1]}, "choice .*not 1"),
        ({**PAIR, "answer": 0, "choices": ["a", "a"]}, "a choice twice"),
    ],
)
def test_row_errors_name_file_and_row(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "rows.jsonl", [GOOD, row, GOOD])
    with pytest.raises(InputError, match=rf"rows\.jsonl, row 2.*{message}"):
        load_task(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_are_counted_in_every_format(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", [GOOD, GOOD, {**GOOD, "completion": ""}])
    with pytest.raises(InputError, match=rf"rows{suffix}, row 3: .*empty"):
        load_task(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": "p", "completion": "c"}\n\n{"prompt"\n', "line 3"),
        ("a.jsonl", '["p", "c"]\n', "line 1 holds"),
        ("a.jsonl", "\n", "has no rows"),
        ("a.csv", "", "has no rows"),
        ("a.csv", "prompt,completion\np,c\np\n", "row 2 has 1 cells"),
        ("a.csv", "prompt,completion\np,c,d\n", "row 1 has 3 cells"),
        ("a.csv", 'prompt,completion\np,"c"d\n', "row 1: .* expected after"),
        ("a.csv", "prompt,choices,answer\np,a|b,0\n", "row 1, choices: .* a JSON list"),
        ("a.csv", 'prompt,choices,answer\np,"[""1"",""2""]",1\n', "an index or the text"),
        ("a.parquet", "no", "expected a parquet file"),
        ("a.txt", "no", "ending .*parquet"),
        ("a.jsonl", '{"prompt": "p", "completion": "c"}\n' * 9, "1 distinct prompt"),
    ],
)
def test_file_errors(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        load_task(tmp_path / name)


def test_files_are_utf8(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / name).write_bytes("prompt,completion\nnaïve,c\n".encode("latin-1"))
        with pytest.raises(InputError, match=r"line \d: .* UTF-8"):
            load_task(tmp_path / name)


def test_byte_order_mark_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\ufeffprompt,completion\np,c\n\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\ufeff" + json.dumps(GOOD) + "\r\n\r\n", encoding="utf-8")
    assert read_examples(tmp_path / "a.csv") == read_examples(tmp_path / "a.jsonl")
