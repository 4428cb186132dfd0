"""Fine-tuning killed at each of its writes: nothing is lost, and the end is the same."""

from __future__ import annotations

import pytest

from helpers.damage import Killed
from helpers.finetuning import RISING, assert_same_run, into
from layerif.core.checkpoint import steps_folder
from layerif.finetuning.trainer import CompletionTrainer, KeepCheckpoints
from layerif.workflows import finetuning

PLACES = {
    "within patience": (CompletionTrainer, "training_step", lambda self, *_: self.state, 4),
    "before it is noted": (KeepCheckpoints, "on_save", lambda _self, _args, state, *_: state, 5),
    "before the best is read": (CompletionTrainer, "_load_best_model", lambda self: self.state, 5),
    "before it is saved": (finetuning, "new_folder", None, 5),
}


def die_at(monkeypatch, owner, name, state_of, step):
    """The function dies in place of its work, after a step."""
    work = getattr(owner, name)

    def dying(*args, **options):
        if state_of is None or state_of(*args).global_step == step:
            raise Killed
        return work(*args, **options)

    monkeypatch.setattr(owner, name, dying)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "out"
    return into(folder, **RISING), folder


@pytest.mark.parametrize("place", PLACES)
def test_it_stops_where_it_would_have_and_keeps_the_best(place, whole, tmp_path, monkeypatch):
    record, folder = whole
    assert (record.best_step, record.steps) == (3, 5)
    with monkeypatch.context() as patch:
        die_at(patch, *PLACES[place])
        with pytest.raises(Killed):
            into(tmp_path / "there" / "out", **RISING)
    # Paths of before say nothing: the disk may be another's now.
    (tmp_path / "there").rename(tmp_path / "here")
    cut = into(tmp_path / "here" / "out", **RISING)
    assert (cut.best_step, cut.steps) == (record.best_step, record.steps)
    assert_same_run(cut, tmp_path / "here" / "out", record, folder)
    assert not steps_folder(tmp_path / "here" / "out").exists()


def test_what_is_left_of_a_checkpoint_stops_nothing(whole, tmp_path, monkeypatch):
    """Would see: UnicodeDecodeError at each try, by the damaged card of a checkpoint."""
    record, folder = whole
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        die_at(patch, *PLACES["before it is noted"][:3], 2)
        with pytest.raises(Killed):
            into(out, **RISING)
    (steps_folder(out) / "checkpoint-2" / "README.md").write_bytes(b"\x88")
    assert_same_run(into(out, **RISING), out, record, folder)
