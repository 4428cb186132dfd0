"""Mixtures of LoRA experts under trainers: resuming, accumulation, processes, TRL."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from helpers.moe_models import adapted, part, texts
from helpers.processes import ended, members_of
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.adapters import LogRouting, LoraMoeConfig, ScaleBalanceLoss, batch_state, routing
from layerif.errors import InputError


def data_set(count):
    return Dataset.from_dict({name: rows.tolist() for name, rows in texts(count).items()})


def trainer(folder, model, *, callbacks=(), data=16, **options):
    asked = {
        "per_device_train_batch_size": 2,
        "max_steps": 8,
        "save_steps": 3,
        "logging_steps": 2,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    } | options
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **asked),
        train_dataset=data_set(data),
        eval_dataset=data_set(4),
        callbacks=list(callbacks),
    )


def trained(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **given):
        control.should_training_stop = state.global_step == self.step


@pytest.mark.parametrize(
    ("dropout", "accumulation"), [(0.0, 1), (0.3, 1), (0.0, 3)], ids=["plain", "dropout", "several"]
)
def test_training_that_was_stopped_goes_on_to_the_same_weights(dropout, accumulation, tmp_path):
    # With three batches a step and eight an epoch, it stops in an epoch whose last step is short.
    options = {"gradient_accumulation_steps": accumulation, "max_steps": 7, "save_steps": 4}

    def fresh(folder, *more):
        model = adapted(lora_dropout=dropout).double()
        return trainer(tmp_path / folder, model, callbacks=[ScaleBalanceLoss(), *more], **options)

    whole = fresh("whole")
    begun = trained(whole.model)
    whole.train()
    fresh("cut", StopAt(5)).train()
    again = fresh("cut")
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 7
    # Not to the bit: some machines sum in another order when tensors lie elsewhere in memory.
    torch.testing.assert_close(trained(again.model), trained(whole.model), rtol=1e-7, atol=1e-9)
    assert not any(torch.equal(begun[name], p) for name, p in trained(whole.model).items())


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    run = trainer(
        tmp_path,
        adapted(),
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the loss falls, so that the first is the one to be loaded
    )
    run.train()
    best = run.state.best_model_checkpoint
    assert best.endswith("-2")
    kept = load_file(f"{best}/adapter_model.safetensors")
    found = trained(run.model)
    assert len(kept) == len(found)
    for name, tensor in found.items():
        assert torch.equal(kept[name.replace(".default", "")], tensor)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing_under_trainer(reentrant, tmp_path):
    plain, saved = (
        trainer(
            tmp_path,
            adapted(),
            max_steps=3,
            save_strategy="no",
            gradient_checkpointing=kept,
            gradient_checkpointing_kwargs={"use_reentrant": reentrant} if kept else None,
        )
        for kept in (False, True)
    )
    plain.train()
    saved.train()
    for name, parameter in trained(plain.model).items():
        torch.testing.assert_close(trained(saved.model)[name], parameter, rtol=1e-4, atol=1e-6)


class Gradients(TrainerCallback):
    """Keeps the gradient of every optimizer step."""

    def __init__(self):
        self.found = []

    def on_pre_optimizer_step(self, args, state, control, **given):
        parameters = given["model"].named_parameters()
        self.found.append({n: p.grad.clone() for n, p in parameters if p.requires_grad})


def of_one_batch(batch):
    """The gradient of one big batch, at the weights that training begins with."""
    model = adapted(torch.float64).train()
    model(**batch).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def accumulated(folder, *callbacks, takes_count=True, **options):
    """The gradients of an epoch of 5 batches, 3 at a time; the weights stay as they are."""
    kept = Gradients()
    run = trainer(
        folder,
        adapted(torch.float64),
        data=10,
        callbacks=[*callbacks, kept],
        learning_rate=0.0,
        max_grad_norm=0.0,
        max_steps=-1,
        num_train_epochs=2,
        save_strategy="no",
        gradient_accumulation_steps=3,
        train_sampling_strategy="sequential",
        **options,
    )
    run.model_accepts_loss_kwargs = takes_count
    run.train()
    assert batch_state(run.model).scale == 1, "left as it was"
    return kept.found


def differ(ours, theirs):
    return max(
        float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()) for name in theirs
    )


@pytest.mark.parametrize("takes_count", [True, False], ids=["by tokens", "by batches"])
def test_accumulated_gradients_are_those_of_one_batch(takes_count, tmp_path):
    found = accumulated(tmp_path, ScaleBalanceLoss(), takes_count=takes_count)
    # Three batches, and the two that are left of the epoch; and all of it again.
    expected = [of_one_batch(part(texts(10), *step)) for step in ((0, 6), (6, 10))] * 2
    assert [differ(a, b) < 1e-5 for a, b in zip(found, expected, strict=True)] == [True] * 4
    without = accumulated(tmp_path, takes_count=takes_count)
    assert min(differ(a, b) for a, b in zip(without, expected, strict=True)) > 0.01


def test_scaled_losses_scale_load_balancing():
    plain, scaled = adapted(torch.float64).train(), adapted(torch.float64).train()
    batch = texts(4)
    plain(**batch).loss.backward()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    # As accelerate's optimizers have it.
    optimizer = SimpleNamespace(scaler=scaler)
    arguments = TrainingArguments(output_dir="unused", use_cpu=True)
    callback = ScaleBalanceLoss()
    callback.on_train_begin(arguments, None, None, model=scaled)
    callback.on_epoch_begin(arguments, None, None, train_dataloader=iter([]))
    callback.on_step_begin(arguments, None, None, optimizer=optimizer)
    scaler.scale(scaled(**batch).loss).backward()
    for own, other in zip(scaled.parameters(), plain.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(own.grad / 1024, other.grad, rtol=1e-5, atol=1e-7)


def test_a_model_without_experts_is_refused():
    with pytest.raises(InputError, match="mixture"):
        batch_state(tiny_model())


def test_logs_have_what_routers_did_since_the_last(tmp_path):
    """Against a report of each forward pass in training; evaluation between leaves no trace."""
    model = adapted()
    seen = []

    class Beside(TrainerCallback):
        """A callback that reports, and comes before those of a user."""

        def on_log(self, args, state, control, **given):
            seen.append(dict(given["logs"]))

    run = trainer(
        tmp_path,
        model,
        callbacks=[Beside()],
        learning_rate=0.0,
        save_strategy="no",
        eval_strategy="steps",
        eval_steps=1,
        max_steps=4,
        train_sampling_strategy="sequential",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    LogRouting().before_others(run)
    run.train()
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(logged) == 2
    assert [entry["router_entropy"] for entry in seen if "loss" in entry] == [
        entry["router_entropy"] for entry in logged
    ]
    assert not any("router_entropy" in entry for entry in seen if "loss" not in entry)
    for number, entry in enumerate(logged):
        with routing(model) as report:
            model(**part(texts(16), 4 * number, 4 * number + 4))
        for name, value in report.summary().items():
            assert entry[name] == pytest.approx(value, rel=1e-6)
    assert not any(getattr(module, "observers", None) for module in model.modules())


# One of two processes; each has one batch of the two, and saves the averaged gradients.
MEMBER = """
import sys, torch
from torch.nn.parallel import DistributedDataParallel
from helpers.moe_models import adapted, part, texts

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
model = DistributedDataParallel(adapted(torch.float64).train())
model(**part(texts(4), 2 * rank, 2 * rank + 2)).loss.backward()
found = {n: p.grad for n, p in model.module.named_parameters() if p.requires_grad}
if rank == 0:
    torch.save(found, sys.argv[1])
torch.distributed.destroy_process_group()
"""


def test_two_processes_have_the_gradient_of_one_with_both_batches(tmp_path):
    members = members_of(2, MEMBER, tmp_path / "gradients")
    for member, said in zip(members, ended(members), strict=True):
        assert member.returncode == 0, said
    found = torch.load(tmp_path / "gradients", weights_only=True)
    assert differ(found, of_one_batch(texts(4))) < 1e-5


def test_sft_trainer_trains_and_saves_it(tmp_path, no_network):
    trl = pytest.importorskip("trl")
    torch.manual_seed(0)
    data = [{"prompt": f"{i} + {i} =", "completion": f" {i + i}"} for i in range(12)]
    run = trl.SFTTrainer(
        model=tiny_model(),
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "run"),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=4,
            save_steps=2,
            logging_steps=1,
            learning_rate=1e-2,
            max_length=64,
            use_cpu=True,
            bf16=False,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(data),
        processing_class=tiny_tokenizer(),
        peft_config=LoraMoeConfig(num_experts=[3, 1, 4], r=2, aux_loss_coef=1e-2),
        callbacks=[ScaleBalanceLoss(), LogRouting()],
    )
    begun = trained(run.model)
    run.train()
    assert not any(torch.equal(begun[name], p) for name, p in trained(run.model).items())
    losses = [entry for entry in run.state.log_history if "loss" in entry]
    assert all(0 < entry["router_entropy"] <= math.log(4) for entry in losses)
    run.save_model(str(tmp_path / "adapter"))
    tokens = torch.randint(3, 250, (1, 9))
    expected = run.model.eval()(tokens).logits
    for folder in (tmp_path / "adapter", tmp_path / "run" / "checkpoint-4"):
        again = PeftModel.from_pretrained(tiny_model(), str(folder)).eval()
        assert torch.equal(again(tokens).logits, expected)
        assert "import layerif.adapters" in (folder / "README.md").read_text()
