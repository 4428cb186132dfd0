"""A step that is not as it was written counts as absent: computed again, to the same result."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pytest
import torch

from helpers.damage import DAMAGES, Killed, cut_off, emptied, garbled, zeroed
from helpers.finetuning import assert_same_run, into
from helpers.marginal_models import corpus
from helpers.scoring import WANTED, measure
from helpers.stages import (
    capacity_small,
    contents,
    cut_short,
    evaluate_small,
    marginal_small,
    prune_small,
    score_small,
    steps_of,
)
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import GroundTruth, LayerScores
from layerif.core.checkpoint import FINGERPRINT_FILE, Steps, resumable, steps_folder
from layerif.errors import InputError
from layerif.influence import solving
from layerif.validation.options import PointOptions
from layerif.workflows.validation import truth_into

KEPT = {"x": torch.tensor([1.5, 2.5]), "y": torch.ones(2, 3, dtype=torch.int64)}


@pytest.fixture
def killed_after(monkeypatch):
    """Run some work and end it after so many finished steps."""

    def run(work, saves):
        save, left = Steps.save, [saves]

        def dying(self, step, tensors):
            save(self, step, tensors)
            left[0] -= 1
            if not left[0]:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Steps, "save", dying)
            patch.setattr(solving, "WORTH", 0.0)  # blocks of tiny models take no time
            with pytest.raises(Killed):
                work()

    return run


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_step_is_what_was_kept_or_absent(damage, tmp_path):
    steps = Steps(tmp_path)
    steps.save("one", KEPT)
    kept = steps.load("one")
    assert kept.keys() == KEPT.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in KEPT.items())
    damage(tmp_path / "one.safetensors")
    assert steps.load("one") is None
    steps.save("one", KEPT)
    assert steps.load("one") is not None


def test_a_step_of_another_kind_is_absent(tmp_path):
    steps = Steps(tmp_path)
    steps.of_kind("disk").save("one", KEPT)
    assert steps.load("one") is None
    assert steps.of_kind("passes").load("one") is None
    assert steps.of_kind("disk").of_kind("ekfac").load("one") is None
    assert steps.of_kind("disk").load("one") is not None


def truth_small(kind):
    def work(out):
        return truth_into(
            out,
            tiny_model(),
            tiny_tokenizer(),
            kind,
            calibration=corpus(),
            options=PointOptions(
                delta=0.1, calibration_samples=4, context_length=24, batch_tokens=48
            ),
        )

    return work


def plan_of(out):
    from layerif.artifacts import Plan

    plan = Plan.load(out)
    return [plan.allocation, [module.sparsity for module in plan.modules]]


def costs_of(out):
    return GroundTruth.load(out).costs


# The work, how many steps it has finished when it is killed, and what its result is.
STAGES = {
    "score on disk": (score_small, 15, contents),
    "score in passes": (
        lambda out: score_small(out, keep="passes", estimator="ekfac"),
        4,
        lambda out: LayerScores.load(out).influence.tobytes(),
    ),
    "prune": (prune_small, 3, contents),
    "evaluate": (evaluate_small, 12, contents),
    "marginal": (marginal_small, 2, plan_of),
    "isolated": (truth_small("isolated"), 2, costs_of),
    "operating point": (truth_small("operating_point"), 2, costs_of),
    "capacity": (capacity_small, 2, costs_of),
}


@pytest.mark.parametrize("stage", STAGES)
def test_whatever_happened_to_its_steps_a_run_comes_to_the_same(stage, tmp_path, killed_after):
    work, saves, result = STAGES[stage]
    work(tmp_path / "reference")
    out = tmp_path / "run"
    killed_after(lambda: work(out), saves)
    files = sorted(file for folder in steps_of(out) for file in folder.glob("*.safetensors"))
    assert files
    for file, damage in zip(files[len(files) % 2 :], cycle(DAMAGES), strict=False):
        damage(file)
    work(out)
    assert result(out) == result(tmp_path / "reference")


@pytest.mark.parametrize("damage", [emptied, garbled, cut_off])
def test_without_its_fingerprint_no_step_is_gone_on_with(damage, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        cut_short(out, WANTED, Killed)
    damage(steps_folder(out) / FINGERPRINT_FILE)
    with resumable(out, WANTED) as steps:
        assert steps.load("one") is None
    assert not steps_folder(out).exists()


def test_begun_again_the_folder_is_emptied_whatever_it_holds(tmp_path):
    out, others = tmp_path / "run", tmp_path / "others"
    others.mkdir()
    (others / "thesis.txt").write_text("mine")
    with pytest.raises(Killed):
        cut_short(out, WANTED, Killed)
    folder = steps_folder(out)
    (folder / "link").symlink_to(others)
    (folder / "dangling").symlink_to(tmp_path / "absent")
    (folder / "two.safetensors").mkdir()
    (folder / "two.safetensors" / "file").write_text("")
    changed = WANTED.model_copy(update={"model": "n"})
    with pytest.raises(InputError, match="other settings"), resumable(out, changed):
        pass
    with resumable(out, changed, restart=True):
        assert sorted(path.name for path in folder.iterdir()) == [FINGERPRINT_FILE, "lock"]
    assert not folder.exists()
    assert (others / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("damage", [zeroed, emptied, cut_off])
def test_gradients_that_never_came_to_the_disk_are_taken_again(damage, tmp_path, killed_after):
    """The file is written in place: its steps may be on the disk and it not, or in part."""
    model = tiny_model(dtype=torch.float64)
    reference = measure(model, batch_tokens=80)

    def work():
        with resumable(tmp_path / "run", WANTED) as steps:
            return measure(model, batch_tokens=80, steps=steps)

    killed_after(work, 10)
    damage(steps_folder(tmp_path / "run") / "gradients.bin")
    forward, calls = model.forward, []
    model.forward = lambda *args, **options: calls.append(None) or forward(*args, **options)
    found = work()
    assert np.array_equal(found.projection_influence, reference.projection_influence)
    assert np.array_equal(found.train_losses, reference.train_losses)
    assert calls


@pytest.mark.parametrize(
    ("first", "second", "estimator", "saves"),
    [
        ("disk", "passes", "ekfac", 2),
        ("passes", "disk", "ekfac", 3),
        ("disk", "passes", "datainf", 12),
        ("passes", "memory", "datainf", 2),
    ],
)
def test_what_was_kept_in_another_way_is_not_gone_on_with(
    first, second, estimator, saves, tmp_path, killed_after
):
    model = tiny_model(dtype=torch.float64)
    options = {"estimator": estimator, "batch_tokens": 80}
    kept = "passes" if second == "passes" else "memory"
    reference = measure(model, keep=kept, **options)

    def work(keep):
        with resumable(tmp_path / "run", WANTED) as steps:
            return measure(model, keep=keep, steps=steps, **options)

    killed_after(lambda: work(first), saves)
    assert np.array_equal(work(second).projection_influence, reference.projection_influence)


CHECKPOINTS = {"plan": None, "checkpoint_every": 2, "max_steps": 5}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of fine-tuning that nothing cut short, and its folder."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    return into(folder, **CHECKPOINTS), folder


@pytest.mark.parametrize(
    ("file", "damage"),
    [("optimizer.pt", zeroed), ("checksums.json", garbled)],
)
def test_a_damaged_checkpoint_is_not_gone_on_with(file, damage, whole, tmp_path, killed_after):
    cut = tmp_path / "cut"
    killed_after(lambda: into(cut, **CHECKPOINTS), 2)
    damage(steps_folder(cut) / "checkpoint-4" / file)
    assert_same_run(into(cut, **CHECKPOINTS), cut, *whole)
