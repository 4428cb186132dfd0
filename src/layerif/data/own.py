"""A user's own task: a file of examples, or a folder of three such files.

The columns are `prompt` and `completion`, and for multiple choice `choices` (a list; in CSV a JSON
list in the cell) and `answer` (the index of the right choice, from 0, or its text). A row with
choices and answer needs no completion; one with choices and completion needs no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from layerif.core.files import READERS, file_hash, parse_json, quoted, read_rows
from layerif.core.progress import note
from layerif.data.base import SPLITS, Example, Split, Task
from layerif.data.sources import Row, listing, split_files
from layerif.data.splits import carve, disjoint
from layerif.data.styles import Request
from layerif.errors import InputError

COLUMNS = ("prompt", "completion", "choices", "answer")
# Of an index written in CSV: more than any row has choices.
MOST_DIGITS = 10
# The shares of the distinct prompts of a single file; the rest is for training.
SHARES: dict[Split, float] = {"validation": 0.1, "test": 0.1}


def load_own(path: Path, request: Request) -> Task:
    """The task in a `.jsonl`, `.parquet` or `.csv` file, or in a folder of train, validation, test.

    The rows of one file are dealt out to train, validation and test, 80, 10 and 10 % of the
    distinct prompts, by the request's seed. In a folder the files are the splits, named as
    `split_files` says. Prompts are taken as written whatever the style, but for `chat`, where each
    becomes a user's message.

    Raises:
        InputError: a file is missing or malformed, or a row is not an example; names file and row.
    """
    render = request.render if request.style == "chat" else None
    if path.is_dir():
        files = {split: split_files(path, split) for split in SPLITS}
        for split, found in files.items():
            if not found:
                raise InputError(
                    f"{path} holds {listing(sorted(p.name for p in path.iterdir()))}; expected a "
                    f"file called {split} ({', '.join(READERS)})"
                )
        parts = {s: [row for f in found for row in read_examples(f)] for s, found in files.items()}
        every = {str(f.relative_to(path)): f for found in files.values() for f in found}
        how = "as given"
    else:
        examples = read_examples(path)
        prompts = len({example.prompt for example in examples})
        if prompts < len(SPLITS):
            raise InputError(
                f"{path} has {prompts} distinct prompt{'s' if prompts > 1 else ''}, and "
                f"{', '.join(SPLITS)} need at least one each"
            )
        parts = carve(examples, SHARES, request.seed)
        every = {path.name: path}
        how = f"80, 10 and 10 % of the distinct prompts, drawn by seed {request.seed}"
    origin: dict[str, Any] = {
        "source": str(path),
        "files": {name: file_hash(file) for name, file in every.items()},
        "splits": how,
    }
    if render is None:
        _note_joined(path, [example for examples in parts.values() for example in examples])
    else:
        origin |= request.styled
        parts = {
            split: [replace(example, prompt=render(example.prompt)) for example in examples]
            for split, examples in parts.items()
        }
    # One prompt with two completions is two examples here, unlike in a public data set.
    splits, origin["dropped"] = disjoint(parts, same=lambda example: example)
    for split, reasons in origin["dropped"].items():
        for reason, count in reasons.items():
            note(f"{path}: {count} {split} rows left out ({reason})")
        if not splits[split]:
            raise InputError(f"{path}: every {split} row has its prompt in another split")
    return Task(str(path), splits, origin)


def read_examples(path: Path) -> list[Example]:
    """The examples in a file, in order.

    Raises:
        InputError: the file cannot be read or is empty, or a row is not an example.
    """
    examples = [
        _example(_typed(row, where) if path.suffix.lower() == ".csv" else row, where)
        for where, row in read_rows(path, COLUMNS)
    ]
    if not examples:
        raise InputError(f"{path} has no rows")
    return examples


def _typed(cells: Row, where: str) -> Row:
    """CSV cells as the values that other formats hold."""
    row = dict(cells)
    if row.get("choices") is not None:
        row["choices"] = parse_json(row["choices"], f"{where}, choices", "a JSON list", None)
    answer, choices = row.get("answer"), row.get("choices")
    if answer is not None and answer.isdecimal() and len(answer) < MOST_DIGITS:
        if isinstance(choices, list) and answer in choices:
            raise InputError(
                f"{where}: answer {answer} may be an index or the text of a choice; "
                f"write these rows as .jsonl, which tells numbers from texts"
            )
        row["answer"] = int(answer)
    return row


def _example(row: Row, where: str) -> Example:
    completion, choices, answer = (row.get(name) for name in ("completion", "choices", "answer"))
    missing = [name for name in ("prompt", "completion") if name not in row]
    if choices is not None and answer is not None and "completion" in missing:
        missing.remove("completion")
    if missing:
        raise InputError(
            f"{where} lacks {' and '.join(missing)}; expected prompt and completion, or prompt, "
            f"choices and answer, and found {listing(list(row))}"
        )
    prompt = _text(row["prompt"], "prompt", where)
    if choices is None:
        if answer is not None:
            raise InputError(f"{where} has an answer, {quoted(answer)}, but no choices")
        return Example(prompt, _text(completion, "completion", where))
    if not isinstance(choices, list) or len(choices) < 2:
        raise InputError(
            f"{where}: choices must be a list of at least two texts, not {quoted(choices)}"
        )
    for choice in choices:
        _text(choice, "choice", where)
    if len(set(choices)) < len(choices):
        raise InputError(f"{where} has a choice twice: {quoted(choices)}")
    if answer is None:
        answer = _text(completion, "completion", where)
    index = choices.index(answer) if answer in choices else answer
    if type(index) is not int or not 0 <= index < len(choices):
        raise InputError(
            f"{where}: answer {quoted(answer)} is neither an index from 0 to {len(choices) - 1} "
            f"nor one of the choices {quoted(choices)}"
        )
    if completion not in (None, choices[index]):
        raise InputError(
            f"{where}: the completion {quoted(completion)} is not the choice that the answer "
            f"names, {quoted(choices[index])}"
        )
    return Example(prompt, choices[index], tuple(choices), index)


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str | None):
        raise InputError(f"{where}: the {name} must be a text, not {quoted(value)}")
    if not (value or "").strip():
        raise InputError(f"{where}: the {name} is empty")
    return str(value)


def _note_joined(path: Path, examples: Sequence[Example]) -> None:
    """Say where candidates are written onto the prompt's last word, which is rarely meant."""
    joined = [(p, c) for e in examples for p, c in e.candidates() if _runs_on(p, c)]
    if joined:
        prompt, completion = joined[0]
        total = sum(len(example.candidates()) for example in examples)
        note(
            f"{path}: {len(joined)} of {total} completions follow their prompt without a blank, as "
            f"in {(prompt[-20:] + completion)[:60]!r}; if that is not meant, begin them with one"
        )


def _runs_on(prompt: str, completion: str) -> bool:
    """Whether two texts meet without a blank, in a script that has blanks between words."""

    def in_word(letter: str) -> bool:
        return letter.isupper() or letter.islower() or letter.isdecimal()

    return in_word(completion[0]) and (in_word(prompt[-1]) or prompt[-1] in ":;,.?!)")
