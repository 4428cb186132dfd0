"""Tasks of lm-evaluation-harness: from a folder of parquet files, the hub, or a user's file."""

from __future__ import annotations

import difflib
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from layerif.core.progress import note
from layerif.data import Example
from layerif.data.catalogue import CATALOGUE, IN_HARNESS
from layerif.data.declared import TaskSpec, fetch_examples, tested_order
from layerif.data.sources import one_line
from layerif.errors import InputError, MissingDependencyError
from layerif.evaluation.harness.quiet import quiet_harness

# What lm-eval marks a task by, and what the task does.
_REFUSED = {
    "UNSAFE_CODE": "runs code that the model writes",
    "MULTIMODAL": "asks about pictures or sound",
}


@dataclass(frozen=True)
class HarnessTasks:
    """Tasks of lm-evaluation-harness with their data, ready to be run.

    Attributes:
        tasks: lm-eval's objects by name, the members of a group one by one.
        groups: lm-eval's groups among what was asked for, by name.
        rows: the rows of each task that are run, ascending; None for all.
        origin: versions, shots and where rows come from, for the record (plain JSON values only).
    """

    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    rows: Mapping[str, list[int]] | None
    origin: dict[str, Any] = field(default_factory=dict)


def load_harness(
    names: Sequence[str],
    *,
    shots: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    data_dir: Path | None = None,
) -> HarnessTasks:
    """Tasks of lm-evaluation-harness by name.

    Args:
        names: tasks, groups or tags that lm-eval knows, or paths of task files in its YAML form.
        shots: solved rows before each question; None leaves the number to each task, mostly 0.
        samples: rows of each task, drawn with `seed`; None takes all.
        data_dir: a folder of parquet data sets, from which the tasks in `IN_HARNESS` are read;
            all others come from the hub.

    Raises:
        InputError: a name is unknown, a task's data cannot be read, it has fewer rows than
            `samples`, or it is one that is not run here (pictures and sound, running of code).
        MissingDependencyError: lm-eval, or a package that a task needs, is not installed.
    """
    version = _require_lm_eval()
    if shots is not None and shots < 0:
        raise InputError(f"the number of shots must not be negative, and is {shots}")
    local = IN_HARNESS if data_dir else []
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    # Loading warns of what every run does (a number of shots set, an open model handed over).
    with quiet_harness(logging.ERROR):
        for name in dict.fromkeys(names):
            if data_dir is not None and name in local:
                tasks[name] = _from_folder(name, data_dir, shots)
            else:
                found = _from_lm_eval(name)
                tasks |= found["tasks"]
                groups |= found.get("groups", {})
        for name, task in tasks.items():
            for flag, does in _REFUSED.items():
                if getattr(task, flag, False):
                    raise InputError(
                        f"task {name} of lm-evaluation-harness {does}, which is not done here"
                    )
            _set_shots(name, task, shots)
        rows = None if samples is None else _draw(tasks, samples, seed, data_dir)
    origin = {
        "lm_eval": version,
        "tasks": list(dict.fromkeys(names)),
        "shots": shots,
        "samples": samples,
        "seed": seed,
        "from_folder": {name: str(data_dir) for name in tasks if name in local},
    }
    return HarnessTasks(tasks, groups, rows, origin)


def _require_lm_eval() -> str:
    """The version of lm-eval, which sets variables of the environment when it is imported."""
    before = dict(os.environ)
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "tasks of lm-evaluation-harness need the package lm-eval, which cannot be imported "
            f"here ({error}); install it with: pip install 'lm-eval>=0.4.12,<0.5' (the extra "
            "layerif[eval])"
        ) from error
    for variable in os.environ.keys() - before.keys():
        del os.environ[variable]
    return metadata.version("lm_eval")


def _from_folder(name: str, data_dir: Path, shots: int | None) -> Any:
    """The catalogue's task in lm-eval's form, over `data_dir/name`; nothing else is read."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    # lm-eval itself puts a blank before a candidate, and counts the letters after it.
    spec = replace(CATALOGUE[name].in_harness, candidate="{text}")
    splits = {f"{spec.folder.test}_split": spec.folder.test}
    if shots:
        if not (data_dir / name / "train.parquet").is_file():
            raise InputError(
                f"task {name} cannot be given {shots} shots: they are rows of the train split, and "
                f"{data_dir / name} has no train.parquet; leave out shots, or data_dir"
            )
        splits["training_split"] = "train"
    rows = {}
    for split in splits.values():
        examples = fetch_examples(spec, data_dir, split)
        if not examples:
            raise InputError(f"{data_dir / name / split}.parquet has no rows")
        rows[split] = datasets.Dataset.from_list([_document(example) for example in examples])
    # Lengths of candidates are divided by where each row has its own.
    metrics = ["acc", "acc_norm"] if spec.options else ["acc"]
    config = {
        "task": name,
        "output_type": "multiple_choice",
        **splits,
        "doc_to_text": "text",
        "doc_to_choice": "choices",
        "doc_to_target": "target",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in metrics
        ],
        "metadata": {"version": spec.harness_version},
        "custom_dataset": lambda **_: rows,
    }
    return ConfigurableTask(config=config)


def _document(example: Example) -> dict[str, Any]:
    """A row as lm-eval takes it: of contexts to choose from, the text is the right one's index."""
    if example.contexts:
        choices, target = example.contexts, example.completion
        return {"text": example.answer, "choices": choices, "target": target}
    return {"text": example.prompt, "choices": example.choices, "target": example.answer}


def _from_lm_eval(name: str) -> Any:
    """What lm-eval has under a name, or in a file: `tasks`, and `groups` where there are any."""
    import datasets
    from jinja2 import TemplateError
    from lm_eval.tasks import TaskManager

    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"no task file at {path}")
        manager = TaskManager(include_defaults=False)
    else:
        manager = _all_tasks()
        if name not in manager.task_index:
            known = manager.all_tasks
            close = difflib.get_close_matches(name, known, n=5)
            hint = f"did you mean {' or '.join(close)}? All" if close else "all"
            raise InputError(
                f"lm-evaluation-harness has no task, group or tag {name!r}; {hint} {len(known):,} "
                "are listed by `lm-eval ls tasks`, and the path of a task file in its YAML form "
                "does as well"
            )
    what = f"task {name} of lm-evaluation-harness"
    try:
        return manager.load([name])
    except ConnectionError as error:
        raise InputError(
            f"the Hugging Face hub cannot be reached for the data of {what}, and no copy of it is "
            f"cached here ({one_line(error)}); connect once to fetch it. With data_dir these need "
            f"no hub: {', '.join(IN_HARNESS)}"
        ) from error
    except ImportError as error:
        raise MissingDependencyError(
            f"{what} needs a package that is not installed here: {one_line(error)}"
        ) from error
    except (
        *(OSError, ValueError, KeyError, TypeError, TemplateError, yaml.YAMLError),
        datasets.exceptions.DatasetsError,
    ) as error:
        raise InputError(f"{what} cannot be loaded: {one_line(error)}") from error


@functools.cache
def _all_tasks() -> Any:
    """lm-eval's own tasks; it reads some 15,000 files for that, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _set_shots(name: str, task: Any, shots: int | None) -> None:
    """The number of shots, unless the task fixes it at none, as lm-eval itself has it."""
    own = task.get_config("num_fewshot")
    if own == 0 and shots:
        note(f"task {name} of lm-evaluation-harness has no shots, whatever is asked for")
    elif shots is not None or own is None:
        task.set_config(key="num_fewshot", value=shots or 0)


def _draw(
    tasks: Mapping[str, Any], samples: int, seed: int, data_dir: Path | None
) -> dict[str, list[int]]:
    """The rows of each task, ascending; a larger draw extends a smaller one.

    Of a task that is in our catalogue too they are first those that our own version of it draws.
    """
    if samples < 1:
        raise InputError(f"the number of samples must be at least 1, not {samples}")
    drawn = {}
    for name, task in tasks.items():
        count = len(task.eval_docs)
        if samples > count:
            raise InputError(
                f"task {name} of lm-evaluation-harness has {count} rows, fewer than the {samples} "
                f"asked for; ask for at most {count}"
            )
        order = np.random.default_rng(seed).permutation(count).tolist()
        spec = CATALOGUE.get(name)
        if spec is not None and spec.harness is not None:
            ours = _drawn_by_us(spec, data_dir, samples, seed, count)
            order = list(dict.fromkeys([*ours, *order]))
        drawn[name] = sorted(order[:samples])
    return drawn


def _drawn_by_us(
    spec: TaskSpec, data_dir: Path | None, samples: int, seed: int, count: int
) -> list[int]:
    """Of `count` rows those that our own version of a task draws; none where it cannot."""
    try:
        drawn, rows = tested_order(spec, data_dir, samples, seed)
    except InputError:  # a split that it needs is not there, so it draws nothing at all
        return []
    if rows != count:
        note(
            f"task {spec.name} has {rows} rows in our catalogue and {count} in "
            "lm-evaluation-harness: the rows drawn are not those of the style harness"
        )
        return []
    return drawn
