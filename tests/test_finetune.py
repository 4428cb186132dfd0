"""Fine-tuning: the steps against plain autograd and AdamW, resuming, stopping, processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from layerif.artifacts import FINETUNING_FILE, Allocation, Finetuning, RoutingUse
from layerif.batching import collate, encode
from layerif.checkpoint import steps_folder
from layerif.errors import InputError, NumericalError
from layerif.finetuning import FinetuneOptions, finetune
from layerif.finetuning.adapters import with_new_adapter
from layerif.finetuning.batches import Batches, texts_of
from layerif.likelihood import token_losses
from layerif.moe import LoraMoeConfig, LoraMoeLinear
from layerif.studies.finetuning import finetune_into
from layerif.tasks import Example, Task
from test_processes import free_port
from tiny import LAYERS, tiny_model, tiny_tokenizer

EXPERTS = Allocation(kind="experts", allocation=[1, 3, 4])
# Completions of different lengths, so that a mean over tokens is not one over rows.
ROWS = [Example(f"say {i}: ", "yes" if i % 2 else "no, never, no") for i in range(22)]
TRAIN, VALIDATION = ROWS[:14], ROWS[14:]
SETTING = {"batch_size": 4, "batch_tokens": 60, "learning_rate": 3e-3, "epochs": 2.0}


def settings(**options):
    return FinetuneOptions(**(SETTING | options))


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def by_hand(plan, options):
    """The same training, whole batches at once, with nothing of the Trainer."""
    model = tiny_model("llama", dtype=torch.float64)
    tokenizer = tiny_tokenizer()
    wrapped, _ = with_new_adapter(model, plan, options)
    wrapped.train()
    texts = texts_of(tokenizer, TRAIN, append_eos=True)
    items, _ = encode(tokenizer, texts, 512)
    generator = torch.Generator().manual_seed(options.seed)
    order = [i for _ in range(2) for i in torch.randperm(len(items), generator=generator).tolist()]
    epochs = [order[: len(items)], order[len(items) :]]
    size = options.batch_size
    batches = [e[i : i + size] for e in epochs for i in range(0, len(items), size)]
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=options.weight_decay)
    rising = -(-3 * len(batches) // 100)
    losses = []
    for step, rows in enumerate(batches):
        falling = (len(batches) - step) / (len(batches) - rising)
        rate = options.learning_rate * min(step / rising, falling)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = collate([items[r] for r in rows], device=torch.device("cpu"), mask_padding=True)
        loss = token_losses(model, batch).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, options.max_grad_norm)
        optimizer.step()
    return wrapped, losses


@pytest.mark.parametrize("plan", [None, EXPERTS], ids=["lora", "experts"])
def test_it_is_adamw_on_the_mean_over_completion_tokens(plan):
    # Parts of 60 tokens hold two or three of a batch's four rows.
    options = settings(balance=0.01 if plan else 0.0)
    start = tiny_model("llama", dtype=torch.float64)
    model, record = finetune(start, tiny_tokenizer(), TRAIN, plan=plan, options=options)
    expected, losses = by_hand(plan, options)
    assert record.steps == len(losses) == 8
    assert [entry.loss for entry in record.losses] == pytest.approx(losses, rel=1e-6)
    found, wanted = weights(model), weights(expected)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-7, atol=1e-9)
    assert max(float(v.abs().max()) for n, v in found.items() if "_B" in n) > 1e-3


def test_parts_and_checkpointing_change_nothing():
    plans = {"balance": 0.05, "dropout": 0.0}
    found = [
        weights(
            finetune(
                tiny_model("llama", dtype=torch.float64),
                tiny_tokenizer(),
                TRAIN,
                plan=EXPERTS,
                options=settings(**plans, **more),
            )[0]
        )
        for more in ({}, {"batch_tokens": 5000}, {"gradient_checkpointing": True})
    ]
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-7, atol=1e-9)


def test_dropout_is_the_same_when_layers_run_again():
    found = [
        weights(
            finetune(
                tiny_model("llama", dtype=torch.float64),
                tiny_tokenizer(),
                TRAIN,
                options=settings(dropout=0.3, gradient_checkpointing=again),
            )[0]
        )
        for again in (False, True)
    ]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-7, atol=1e-9)


def test_the_seed_decides_and_what_the_process_draws_is_left_alone():
    def trained(seed):
        torch.manual_seed(3)
        options = settings(seed=seed, dropout=0.2, max_steps=3)
        model, _ = finetune(tiny_model("llama"), tiny_tokenizer(), TRAIN, options=options)
        return weights(model), torch.rand(1).item()

    torch.manual_seed(3)
    drawn = torch.rand(1).item()
    (one, after), (same, _), (other, _) = trained(0), trained(0), trained(1)
    assert after == drawn
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_adapters_are_in_float32_in_a_bfloat16_model():
    model, record = finetune(
        tiny_model("llama", dtype=torch.bfloat16),
        tiny_tokenizer(),
        TRAIN,
        VALIDATION,
        plan=EXPERTS,
        options=settings(epochs=6.0, learning_rate=1e-2),
    )
    assert {v.dtype for v in weights(model).values()} == {torch.float32}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16}
    assert record.losses[-1].loss < record.losses[0].loss - 0.5
    assert record.evaluations[-1].loss < record.evaluations[0].loss


def test_experts_layer_by_layer_and_what_is_recorded():
    model, record = finetune(
        tiny_model("llama"),
        tiny_tokenizer(),
        TRAIN,
        VALIDATION,
        plan=EXPERTS,
        options=settings(rank=4, max_steps=4, evaluate_every=2),
    )
    layers = [m for m in model.modules() if isinstance(m, LoraMoeLinear)]
    assert {(m.layer, m.experts["default"], m.rank["default"]) for m in layers} == {
        (0, 1, 4),
        (1, 3, 4),
        (2, 4, 4),
    }
    assert record.method == "lora_moe"
    assert record.rows == {"train": 14, "validation": 8, "left_out": 0}
    assert [e.step for e in record.evaluations] == [2, 4]
    for entry in record.losses:
        assert 0 < entry.router_entropy < 1.4  # ln 4, the most
        assert 1 / 3 <= entry.largest_load <= 0.5  # a token goes to two
    assert record.trainable_parameters == sum(v.numel() for v in weights(model).values())


def test_it_stops_early_and_returns_the_best():
    # A rate so high that the loss soon rises.
    options = settings(learning_rate=0.3, epochs=12.0, evaluate_every=1, patience=2)
    model, record = finetune(
        tiny_model("llama"), tiny_tokenizer(), TRAIN, VALIDATION, options=options
    )
    losses = {e.step: e.loss for e in record.evaluations}
    best = min(losses, key=lambda step: losses[step])
    assert record.best_step == best
    assert record.steps == best + 2 < 48
    inner = model.get_base_model()
    texts = texts_of(tiny_tokenizer(), VALIDATION, append_eos=True)
    items, _ = encode(tiny_tokenizer(), texts, 512)
    model.eval()
    with torch.no_grad():
        own = [
            token_losses(inner, collate([item], device=torch.device("cpu"))).mean().item()
            for item in items
        ]
    assert sum(own) / len(own) == pytest.approx(losses[best], rel=1e-5)


TASK = Task("rows", {"train": TRAIN, "validation": VALIDATION, "test": []})


def into(folder, plan=EXPERTS, model=None, **options):
    """What `finetune_into` makes of the rows."""
    return finetune_into(
        folder,
        model or tiny_model("llama"),
        tiny_tokenizer(),
        TASK,
        train=TRAIN,
        validation=VALIDATION,
        plan=plan,
        options=settings(**options),
    )


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
        texts = texts_of(tiny_tokenizer(), VALIDATION, append_eos=True)
        tokens = sum(len(item.input_ids) for item in encode(tiny_tokenizer(), texts, 512)[0])
        assert {router.tokens for router in use.routers} == {tokens}
        assert {router.layer for router in use.routers} == {1, 2}
    again = into(tmp_path / "out", plan)  # found, and not done again
    assert again.seconds == record.seconds
    with pytest.raises(InputError, match=r"learning_rate was 0\.003 and is 0\.004"):
        into(tmp_path / "out", plan, learning_rate=0.004)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", [1, 4, 5])
def test_cut_short_it_goes_on_to_the_same_bits(step, tmp_path, monkeypatch):
    """Dropout drawn, rates falling, an epoch begun: all of it goes on where it was."""
    options = {"dropout": 0.2, "checkpoint_every": 2, "evaluate_every": 3}
    whole = into(tmp_path / "whole", **options)
    from layerif.finetuning.trainer import CompletionTrainer

    run = CompletionTrainer.training_step
    ran = []

    def dying(self, model, inputs, *args, **kwargs):
        if len(ran) == step:
            raise Killed
        ran.append(self.state.global_step)
        return run(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(CompletionTrainer, "training_step", dying)
    with pytest.raises(Killed):
        into(tmp_path / "cut", **options)
    ran.clear()
    monkeypatch.setattr(
        CompletionTrainer,
        "training_step",
        lambda self, *a, **k: (ran.append(self.state.global_step), run(self, *a, **k))[1],
    )
    cut = into(tmp_path / "cut", **options)
    assert ran[0] == step // 2 * 2
    same = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    found = load_file(tmp_path / "cut" / "adapter_model.safetensors")
    assert all(torch.equal(same[name], found[name]) for name in same)
    assert cut.losses == whole.losses
    assert cut.evaluations == whole.evaluations


def test_a_half_written_checkpoint_is_passed_over(tmp_path, monkeypatch):
    from layerif.finetuning.trainer import CompletionTrainer

    save = CompletionTrainer._save_optimizer_and_scheduler

    def dying(self, folder):
        if self.state.global_step == 4:
            raise Killed
        save(self, folder)

    monkeypatch.setattr(CompletionTrainer, "_save_optimizer_and_scheduler", dying)
    with pytest.raises(Killed):
        into(tmp_path / "cut", checkpoint_every=2)
    kept = steps_folder(tmp_path / "cut")
    assert (kept / "checkpoint-4").is_dir()  # begun
    monkeypatch.setattr(CompletionTrainer, "_save_optimizer_and_scheduler", save)
    first = []
    run = CompletionTrainer.training_step
    monkeypatch.setattr(
        CompletionTrainer,
        "training_step",
        lambda self, *a, **k: (first.append(self.state.global_step), run(self, *a, **k))[1],
    )
    into(tmp_path / "cut", checkpoint_every=2)
    assert first[0] == 2
    into(tmp_path / "whole", checkpoint_every=50)
    same = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    found = load_file(tmp_path / "cut" / "adapter_model.safetensors")
    assert all(torch.equal(same[name], found[name]) for name in same)


def test_every_row_comes_once_in_an_epoch_whatever_the_processes(monkeypatch):
    tokenizer = tiny_tokenizer()
    items, _ = encode(tokenizer, texts_of(tokenizer, TRAIN, append_eos=True), 512)
    for world in (1, 3):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        seen = []
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            batches = Batches(items, settings(batch_size=4, epochs=1.0))
            steps = [batches[step] for step in range(len(batches))]
            assert [s.rows for s in steps] == [4, 4, 4, 2]
            assert sum(s.tokens for s in steps) == sum(item.scored for item in items)
            seen += [i.index for s in steps if not s.spare for part in s.parts for i in part]
        assert sorted(seen) == list(range(14))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosin"}, "no schedule 'cosin'"),
        ({"epochs": 0.0}, "epochs is 0.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"warmup_ratio": 1.0}, "warmup_ratio is 1.0"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        FinetuneOptions(**options)


def test_what_cannot_be_trained_is_refused():
    tokenizer = tiny_tokenizer()
    with pytest.raises(InputError, match="patience stops training by the loss on validation"):
        finetune(tiny_model("llama"), tokenizer, TRAIN, options=settings(patience=1))
    with pytest.raises(InputError, match="no training samples"):
        finetune(tiny_model("llama"), tokenizer, [], options=settings())
    plan = Allocation(kind="sparsity", allocation=[0.5] * LAYERS)
    with pytest.raises(InputError, match="a plan of experts or of ranks"):
        finetune(tiny_model("llama"), tokenizer, TRAIN, plan=plan)
    plan = Allocation(kind="experts", allocation=[2, 2])
    with pytest.raises(InputError, match="has 2 layers"):
        finetune(tiny_model("llama"), tokenizer, TRAIN, plan=plan)
    adapted, _ = finetune(tiny_model("llama"), tokenizer, TRAIN, options=settings(max_steps=1))
    with pytest.raises(InputError, match="has adapters already"):
        finetune(adapted, tokenizer, TRAIN)
    model = tiny_model("llama")
    model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(NumericalError, match="the loss of step 1 is nan"):
        finetune(model, tokenizer, TRAIN, options=settings())


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
    assert "batch_size is 0" in err


MEMBER = """
import sys
import torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from pathlib import Path
from test_finetune import into
from tiny import tiny_model
into(Path(sys.argv[1]), model=tiny_model("llama", dtype=torch.float64), balance=0.05,
            checkpoint_every=3, evaluate_every=3, batch_size=4)
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    tests = os.path.dirname(__file__)
    shared = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "OMP_NUM_THREADS": "1",
    }
    members = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER.format(tests=tests), str(tmp_path / "two")],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [member.communicate(timeout=180)[1] for member in members]
    assert [member.returncode for member in members] == [0, 0], said
    model = tiny_model("llama", dtype=torch.float64)
    one = into(tmp_path / "one", model=model, balance=0.05, evaluate_every=3)
    two = Finetuning.load(tmp_path / "two" / FINETUNING_FILE)
    assert two.processes == 2
    assert [e.loss for e in two.losses] == pytest.approx([e.loss for e in one.losses], rel=1e-6)
    for ours, theirs in zip(one.evaluations, two.evaluations, strict=True):
        assert theirs.loss == pytest.approx(ours.loss, rel=1e-9)
    same = load_file(tmp_path / "one" / "adapter_model.safetensors")
    found = load_file(tmp_path / "two" / "adapter_model.safetensors")
    for name, value in same.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8)


def test_the_configuration_is_saved_with_the_adapter(tmp_path):
    into(tmp_path / "out", max_steps=1, top_k=1)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["num_experts"] == [1, 3, 4]
    assert LoraMoeConfig.from_pretrained(tmp_path / "out").top_k == 1
