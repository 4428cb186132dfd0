"""What reaches a terminal, or a file in its place: foreign text, progress, interruptions."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.table import Table
from rich.text import Text

from layerif.artifacts import LayerScores
from layerif.cli.command import as_typed
from layerif.core import progress as progress_module
from layerif.core.checkpoint import steps_folder
from layerif.core.progress import progress
from layerif.core.terminal import Console, harmless, harmless_json
from layerif.influence.estimators.base import Estimator, Solution
from layerif.influence.estimators.registry import ESTIMATORS
from layerif.metrics.base import MetricValues
from layerif.metrics.registry import METRICS, register_metric

EVIL = "\x1b]0;owned\x07 \x9b31m red \u202eesrever\u2066 [bold]b[/] [/] :smile: \ud83d \x7f"
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def test_a_console_prints_foreign_text_as_characters_alone():
    console = Console()
    console.file = io.StringIO()
    table = Table(title=EVIL, caption=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL)
    table.add_row(Text(EVIL))
    console.print(table)
    console.print(EVIL, soft_wrap=True)
    console.print(Text(EVIL), soft_wrap=True)
    console.rule(EVIL)
    shown = console.file.getvalue()
    assert not RAW.search(shown)
    for said in ("\\x1b]0;owned\\x07", "\\x9b31m", "\\u202e", "[bold]b[/] [/] :smile: \\ud83d"):
        assert said in shown
    assert harmless("plain\ttext\nof Zoë, 漢字 and 👩‍🚀") == "plain\ttext\nof Zoë, 漢字 and 👩‍🚀"


def test_a_colour_of_our_own_is_still_drawn():
    console = Console()
    console.file = io.StringIO()
    console._color_system = console._color_system or 1
    console._force_terminal = True
    with console.capture() as captured:
        console.print(Text("\x1b", "bold red"))
    assert "\x1b[1" in captured.get()
    assert "\\x1b" in captured.get()


def test_json_says_the_same_with_escapes_of_its_own():
    text = json.dumps({"text": EVIL}, ensure_ascii=False)
    assert not RAW.search(harmless_json(text))
    assert json.loads(harmless_json(text)) == {"text": EVIL}


def test_rows_and_names_of_others_do_nothing_to_the_terminal(layerif, tmp_path):
    path = tmp_path / "rows\x1b[31m.jsonl"
    evil = EVIL.replace("\ud83d", "")
    rows = [{"prompt": f"{evil}{i}", "completion": f"{evil} c"} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, out, err = layerif("tasks", "show", path)
    assert status == 0, err
    assert not RAW.search(out + err)
    assert "\\x1b]0;owned" in out
    status, out, _ = layerif("tasks", "show", path, "--json")
    assert not RAW.search(out)
    assert json.loads(out)["examples"][0]["candidates"][0]["completion"] == f"{evil} c"
    status, out, err = layerif("tasks", "show", tmp_path / "absent\x1b]0;x\x07\udcff.jsonl")
    assert status == 2
    assert not RAW.search(out + err)
    assert "\\x1b]0;x" in err


def test_off_a_terminal_lines_come_at_growing_intervals(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with progress("solving", 1200) as advance:
        advance(100)  # found finished, and no part of the rate
        for _ in range(300):
            now[0] += 1
            advance(2)
    lines = capsys.readouterr().err.splitlines()
    # The first of long work comes from the first two seconds.
    assert lines[0] == "solving: 104 of 1,200, 2 a second, about 9 min 8 s left"
    done = [int(line.split()[1]) for line in lines]
    assert np.diff([(each - 100) / 2 for each in done]).tolist() == [20, 40, 60, 60, 60]


@pytest.mark.parametrize(("seconds", "expected"), [(15, "1 min 0 s"), (4, None)])
def test_on_a_terminal_long_work_says_once_how_long_it_takes(monkeypatch, seconds, expected):
    """Of five units, the first of which was found finished; 4 s each are too little for a line."""
    now = [0.0]
    console = Console()
    console.file = io.StringIO()
    console._force_terminal = True
    monkeypatch.setattr(progress_module, "console", console)
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with progress("pruning", 6) as advance:
        advance()
        for _ in range(5):
            now[0] += seconds
            advance()
    said = re.findall(r"pruning: 2 of 6, [^,]+, about (.+) left", console.file.getvalue())
    assert said == ([expected] if expected else [])
    assert len(re.findall(r"pruning: \d", console.file.getvalue())) == len(said)


def test_work_of_several_bars_has_lines_of_its_own_on_a_terminal(monkeypatch):
    now = [0.0]
    console = Console()
    console.file = io.StringIO()
    console._force_terminal = True
    monkeypatch.setattr(progress_module, "console", console)
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with progress("plans", 3, bar=False) as advance:
        for _ in range(3):
            with progress("pruning", 1) as inner:
                now[0] += 90
                inner()
            advance()
    said = re.findall(r"plans: (\d) of 3, .*about (.+) left", console.file.getvalue())
    assert said == [("1", "3 min 0 s"), ("2", "1 min 30 s")]


def test_a_short_piece_of_work_says_nothing_off_a_terminal(tmp_path):
    code = (
        "from layerif.core import progress as p\n"
        "import sys, time\n"
        "p.FIRST_WAIT, p.FOUND_WITHIN = float(sys.argv[1]), 0.0\n"
        "with p.progress('work', 3) as advance:\n"
        "    for _ in range(3): time.sleep(0.02); advance()\n"
    )
    for wait, lines in (("10", 0), ("0.03", 1)):
        err = tmp_path / wait
        with err.open("w") as file:
            subprocess.run([sys.executable, "-c", code, wait], stderr=file, check=True)
        assert len(err.read_text().splitlines()) == lines


def dots(block, _options):
    return Solution.of(block.products(block.validation), None)


@pytest.fixture
def stopping():
    """A metric, and an estimator after the gradients, in which the process is asked to stop."""
    ask = {"signal": signal.SIGINT}

    def stop(*_: object) -> None:
        os.kill(os.getpid(), ask["signal"])
        time.sleep(5)

    def estimator(*arguments):
        stop()
        return dots(*arguments)

    register_metric("stopping", lambda subject: stop() or MetricValues(np.ones(3), None))
    ESTIMATORS.register("stopping", Estimator(estimator, damped=False))
    # A shell that started the suite in the background has it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield ask
    signal.signal(signal.SIGINT, before)
    del METRICS._registered["stopping"], ESTIMATORS._registered["stopping"]


def test_an_interruption_says_what_is_kept_and_how_to_go_on(layerif, model, tmp_path, stopping):
    run = tmp_path / "a run"
    few = ["--train-samples", 6, "--validation-samples", 3, "--rank", 2]
    command = ["score", "--model", model, "--task", "agreement", *few, "--estimator", "stopping"]
    before = signal.getsignal(signal.SIGTERM)
    for number, expected in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        stopping["signal"] = number
        status, out, err = layerif(*command, "--out", run)
        assert (status, out) == (expected, "")
        assert "Traceback" not in err
        assert f"kept in {steps_folder(run)}" in err
        assert err.endswith(shlex.join(["layerif", *map(str, command), "--out", str(run)]))
        assert signal.getsignal(signal.SIGTERM) == before
    # The steps are those that the command goes on with.
    assert [*steps_folder(run).glob("*.safetensors")]
    ESTIMATORS._registered["stopping"] = Estimator(dots, damped=False)
    assert layerif(*command, "--out", run)[0] == 0
    assert LayerScores.load(run).record.estimator == "stopping"


def test_a_replay_has_the_status_of_its_command(layerif, model, tmp_path, stopping):
    scores = tmp_path / "scores.json"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"command: metric\nname: stopping\nmodel: {model}\nout: {scores}\n")
    status, _, err = layerif("run", recipe)
    assert status == 130
    assert "nothing was written" in err
    assert err.count("interrupted") == 1
    assert not scores.exists()


def test_messages_of_the_library_name_options_as_they_are_typed(layerif, tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("[2, 2, 2]")
    status, _, err = layerif("allocate", "sparsity", path, "--sparsity", 0.5)
    assert status == 2
    assert "--on-constant uniform" in err
    assert "on_constant" not in err
    path.write_text("[-2, 2, 3]")
    command = ["allocate", "experts", path, "--total", 9, "--normalise", "none"]
    assert "--normalise minmax" in layerif(*command)[2]

    class Option:
        param_type_name = "option"

        def __init__(self, *opts: str, off: tuple[str, ...] = (), is_flag: bool = False) -> None:
            self.opts, self.secondary_opts, self.is_flag = list(opts), list(off), is_flag
            self.name = opts[0][2:].replace("-", "_")

    options = [
        Option("--max-length"),
        Option("--smooth", off=("--no-smooth",), is_flag=True),
        Option("--rank"),
    ]
    for message, shown in {
        "max_length is 1; it must be more": "--max-length is 1; it must be more",
        "take rank=8, smooth=False": "take --rank 8, --no-smooth",
        "rank is 0, and there is no smooth curve": "rank is 0, and there is no smooth curve",
        "choose another `rank` or `max_length`": "choose another --rank or --max-length",
        "the model of `layerif` and its `name`": "the model of `layerif` and its `name`",
        "in runs/max_length/rank=8.json": "in runs/max_length/rank=8.json",
    }.items():
        assert as_typed(message, options) == shown
    for message in ("rank=8.json and 'max_length' of x.max_length", "fresh_lora=2 and top_k"):
        assert as_typed(message, options) == message
