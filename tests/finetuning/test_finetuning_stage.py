"""The stage of fine-tuning: its folder, runs cut short, several processes, the command line."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from helpers.damage import Killed
from helpers.finetuning import (
    EXPERTS,
    TRAIN,
    VALIDATION,
    assert_same_run,
    into,
    settings,
)
from helpers.processes import ended, members_of
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.adapters import LoraMoeConfig
from layerif.artifacts import FINETUNING_FILE, Finetuning, RoutingUse, ValidationLoss
from layerif.core.checkpoint import steps_folder
from layerif.data.tokenizing import encode_samples
from layerif.errors import InputError
from layerif.finetuning.finetune import finetune
from layerif.finetuning.trainer import CompletionTrainer
from layerif.report.tables import finetuning_table


@pytest.mark.parametrize("plan", [None, EXPERTS], ids=["lora", "experts"])
def test_the_folder_is_an_adapter_that_peft_reads(plan, tmp_path):
    record = into(tmp_path / "out", plan)
    read = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "out").eval()
    trained = finetune(
        tiny_model("llama"), tiny_tokenizer(), TRAIN, VALIDATION, plan=plan, options=settings()
    )[0].eval()
    ids = torch.arange(12).view(1, 12)
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, trained(ids).logits)
    assert Finetuning.load(tmp_path / "out" / FINETUNING_FILE) == record
    assert not steps_folder(tmp_path / "out").exists()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert ({"routing.json", "routing.png"} <= names) == (plan is not None)
    if plan is not None:
        use = RoutingUse.load(tmp_path / "out" / "routing.json")
        items, _ = encode_samples(tiny_tokenizer(), VALIDATION, 512, "validation", end=True)
        tokens = sum(len(item.input_ids) for item in items)
        assert {router.tokens for router in use.routers} == {tokens}
        assert {router.layer for router in use.routers} == {1, 2}
    again = into(tmp_path / "out", plan)  # found, and not done again
    assert again.seconds == record.seconds
    with pytest.raises(InputError, match="learning_rate"):
        into(tmp_path / "out", plan, learning_rate=0.004)


# Dropout drawn, rates falling, an epoch begun: all of it goes on where it was.
CUT = {"dropout": 0.2, "checkpoint_every": 2, "evaluate_every": 3}


@pytest.fixture
def undrawn(monkeypatch):
    """No pictures, which take longer than the training."""
    monkeypatch.setattr("layerif.workflows.finetuning.plot_routing", lambda *_: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing cut short, and its folder."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    return into(folder, **CUT), folder


@pytest.fixture
def steps_run(monkeypatch):
    """The number of each training step as it begins."""
    run, ran = CompletionTrainer.training_step, []

    def noted(self, *args, **options):
        ran.append(self.state.global_step)
        return run(self, *args, **options)

    monkeypatch.setattr(CompletionTrainer, "training_step", noted)
    return ran


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("step", [1, 4, 5])
def test_cut_short_it_goes_on_to_the_same_adapter(step, whole, steps_run, tmp_path, monkeypatch):
    run = CompletionTrainer.training_step

    def dying(self, *args, **options):
        if len(steps_run) == step:
            raise Killed
        return run(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(CompletionTrainer, "training_step", dying)
        with pytest.raises(Killed):
            into(tmp_path / "cut", **CUT)
    steps_run.clear()
    cut = into(tmp_path / "cut", **CUT)
    assert steps_run[0] == step // 2 * 2
    assert_same_run(cut, tmp_path / "cut", *whole)


@pytest.mark.usefixtures("undrawn")
def test_a_half_written_checkpoint_is_passed_over(whole, steps_run, tmp_path, monkeypatch):
    save = CompletionTrainer._save_optimizer_and_scheduler

    def dying(self, folder):
        if self.state.global_step == 4:
            raise Killed
        save(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(CompletionTrainer, "_save_optimizer_and_scheduler", dying)
        with pytest.raises(Killed):
            into(tmp_path / "cut", **CUT)
    assert (steps_folder(tmp_path / "cut") / "checkpoint-4").is_dir()  # begun
    steps_run.clear()
    # How a run is made safe is no part of the work.
    safe = {"checkpoint_every": 3, "gradient_checkpointing": True}
    cut = into(tmp_path / "cut", **(CUT | safe))
    assert steps_run[0] == 2
    assert_same_run(cut, tmp_path / "cut", *whole)


def test_rows_as_jsonl_by_the_command_line(layerif, model, tmp_path):
    lines = [
        json.dumps({"prompt": f"is {i} even?", "completion": " yes" if i % 2 == 0 else " no"})
        for i in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    EXPERTS.save(tmp_path / "plan.json")
    asked = ["finetune", "--model", model, "--task", tmp_path / "rows.jsonl"]
    asked += ["--validation-samples", 5, "--max-steps", 3, "--batch-size", 4]
    with_plan = [*asked, "--plan", tmp_path / "plan.json", "--out", tmp_path / "moe"]
    status, out, err = layerif(*with_plan, "--json")
    assert status == 0, err
    record = json.loads(out)
    assert (record["method"], record["steps"], record["options"]["rank"]) == ("lora_moe", 3, 8)
    assert "nothing is done again" in layerif("run", tmp_path / "moe" / "recipe.yaml")[2]
    paper = ["--preset", "paper", "--rank", 2, "--out", tmp_path / "paper", "--json"]
    options = json.loads(layerif(*asked, *paper)[1])["options"]
    assert (options["rank"], options["dropout"], options["batch_size"]) == (2, 0.05, 4)
    assert options["max_length"] == 256
    status, out, err = layerif(*asked, "--out", tmp_path / "lora")
    assert "LoRA, 11,136 trainable parameters" in " ".join(out.split())
    status, out, err = layerif(*asked, "--batch-size", 0, "--out", tmp_path / "none")
    assert status == 2
    assert "--batch-size 0" in err


MEMBER = """
import os, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from safetensors.torch import save_file
from layerif.finetuning.finetune import finetune
from helpers.finetuning import RISING, TRAIN, VALIDATION, into, settings, weights
from helpers.tiny import tiny_model, tiny_tokenizer
out = Path(sys.argv[1])
into(out, model=tiny_model("llama", dtype=torch.float64), balance=0.05,
            checkpoint_every=3, evaluate_every=3, batch_size=13)
options = settings(**{name: value for name, value in RISING.items() if name != "plan"})
model, record = finetune(tiny_model(), tiny_tokenizer(), TRAIN, VALIDATION, options=options)
assert record.best_step < record.steps
save_file(weights(model), out.with_name("best-" + os.environ["RANK"]))
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    members = members_of(2, MEMBER, tmp_path / "two")
    for member, said in zip(members, ended(members), strict=True):
        assert member.returncode == 0, said
    model = tiny_model("llama", dtype=torch.float64)
    # Of 14 rows the last batch of an epoch has one, and the second process none of its own.
    one = into(tmp_path / "one", model=model, balance=0.05, evaluate_every=3, batch_size=13)
    two = Finetuning.load(tmp_path / "two" / FINETUNING_FILE)
    assert two.processes == 2
    assert [e.loss for e in two.losses] == pytest.approx([e.loss for e in one.losses], rel=1e-6)
    for ours, theirs in zip(one.evaluations, two.evaluations, strict=True):
        assert theirs.loss == pytest.approx(ours.loss, rel=1e-9)
    same = load_file(tmp_path / "one" / "adapter_model.safetensors")
    found = load_file(tmp_path / "two" / "adapter_model.safetensors")
    for name, value in same.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8)
    # Where no folder is shared, too, the best is everyone's.
    first, second = (load_file(tmp_path / f"best-{rank}") for rank in range(2))
    assert all(torch.equal(second[name], value) for name, value in first.items())


@pytest.mark.usefixtures("undrawn")
def test_the_configuration_is_saved_with_the_adapter(tmp_path):
    into(tmp_path / "out", max_steps=1, top_k=1)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["num_experts"] == [1, 3, 4]
    assert LoraMoeConfig.from_pretrained(tmp_path / "out").top_k == 1


def test_a_long_run_shows_the_step_that_was_kept():
    options = settings(max_steps=1)
    _, record = finetune(tiny_model("llama"), tiny_tokenizer(), TRAIN, options=options)
    measured = [ValidationLoss(step=step, loss=2.0) for step in range(1, 41)]
    shown = finetuning_table(record.model_copy(update={"evaluations": measured, "best_step": 18}))
    steps, losses = ([str(cell) for cell in shown.columns[i].cells] for i in (0, 2))
    assert len(steps) == 13
    assert steps[-1] == "40"
    assert [s for s, loss in zip(steps, losses, strict=True) if "kept" in loss] == ["18"]
