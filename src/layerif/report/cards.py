"""Model cards of adapters and models: how they are opened, and how they came to be.

From their records alone, without a time or a place, so that the same work has the same card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerif.artifacts import (
    DroppedLayers,
    Finetuning,
    Manifest,
    ModelInfo,
    Plan,
    QuantizedManifest,
)
from layerif.core.aliases import ALIASES
from layerif.report.plots import task_name

METHODS = {"lora": "A LoRA", "lora_moe": "A mixture of LoRA experts"}
HASH = re.compile(r"[0-9a-f]{64}")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
GENERATE = """
ids = tokenizer("Once upon a time", return_tensors="pt").input_ids.to(model.device)
print(tokenizer.decode(model.generate(input_ids=ids, max_new_tokens=20)[0]))"""

USE = f"""## Use

In this folder; elsewhere give its path, or its name on the Hugging Face hub, in place of ".".

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
{GENERATE}
```"""


def adapter_card(record: Finetuning) -> str:
    """The card of a folder with an adapter that layerif has trained."""
    base, options, rows = record.model, record.options, record.rows
    plan = record.plan or Plan(
        kind="ranks", allocation=[int(options["rank"])] * base.layers, how={"map": "uniform"}
    )
    facts = {
        "base model": _named(base),
        "terms of use of the base model": _terms(base),
        "task": task_name(record.task),
        "rows": f"{rows['train']} for training, {rows['validation']} for validation; "
        f"{rows['left_out']} did not fit",
        **_plan(plan),
        "trainable parameters": f"{record.trainable_parameters:,}",
        "options": ", ".join(f"{name} {options[name]}" for name in sorted(options)),
        "steps": f"{record.steps:,}"
        + (f", kept after step {record.best_step}" if record.best_step else ""),
        "training loss": _ends(record.losses),
        "validation loss": _ends(record.evaluations),
        **_setting(record),
    }
    return f"""{_front(base, "peft")}
# {METHODS[record.method]} for {base.name}

{opening_code(base.name, own_method=record.method == "lora_moe")}
{_served(plan)}
## How it was trained

The loss is of completions alone, in nats a completion token. `layerif_finetuning.json` holds the
whole record.

{_table(facts)}
"""


def _served(plan: Plan) -> str:
    """What to know before a LoRA of a plan is served by an engine other than PEFT."""
    if plan.kind != "ranks" or len(set(plan.allocation)) < 2:
        return ""
    return """
## In other engines

The ranks of this LoRA differ by layer. llama.cpp and vLLM read no `alpha_pattern` and would give
it a wrong scale, without a word; `layerif export lora FOLDER --out OUT` writes the same adapter
with equal ranks, which every engine reads alike.
"""


def pruned_card(manifest: Manifest) -> str:
    """The card of a folder with a pruned model."""
    facts = {
        "method": f"{manifest.method}{f', {manifest.nm}' if manifest.nm else ''}",
        "zeros": f"{manifest.sparsity:.4%} of the weights of the projections of decoder layers",
        **_plan(manifest.plan),
        "calibration": _said(manifest.calibration),
        "merged LoRA": manifest.merged or "",
    }
    return _changed_card(manifest, "pruned", "with the zeros of every projection", facts)


def quantized_card(manifest: QuantizedManifest) -> str:
    """The card of a folder with a quantised model."""
    group = f"groups of {manifest.group_size} inputs" if manifest.group_size else "whole rows"
    points = {"zero_point": "integer zero points", "minimum": "minima"}[manifest.offset]
    points = "no zero points" if manifest.symmetric else points
    facts = {
        "method": f"{manifest.method}, {group}, {manifest.scales} scales, {points}",
        "bits": f"{manifest.bits:.4g} of a weight of the projections of decoder layers, "
        f"{manifest.stored_bits:.4g} with scales and zero points",
        "bytes of the projections": f"{manifest.bytes:,}",
        **{
            f"bytes of {other.name}": f"{other.bytes:,}"
            + (f", {other.bits} bits" if other.bits else ", as it was")
            for other in manifest.others
        },
        "stored as": f"packed integers ({manifest.packed}), the rest in {manifest.precision}"
        if manifest.packed
        else f"rounded weights in {manifest.precision}, for measuring: no smaller than before",
        **_plan(manifest.plan),
        "calibration": _said(manifest.calibration),
    }
    words = "with bits and bytes of every projection"
    why = "\n\nIt needs the library `compressed-tensors`." if manifest.packed else ""
    return _changed_card(manifest, "quantised", words, facts, needs=why)


def _changed_card(
    manifest: Manifest | QuantizedManifest,
    how: str,
    holds: str,
    facts: Mapping[str, str],
    *,
    needs: str = "",
) -> str:
    """The card of a model's folder that plain transformers opens."""
    base = manifest.model
    facts = {
        "base model": _named(base),
        "terms of use of the base model": _terms(base),
        **facts,
        **_setting(manifest),
    }
    return f"""{_front(base, "transformers")}
# {base.name}, {how}

{USE}{needs}

## How it was {how}

`layerif_manifest.json` holds the whole record, {holds}.

{_table(facts)}
"""


def dropped_card(manifest: DroppedLayers) -> str:
    """The card of a folder with a model of fewer layers."""
    base = manifest.model
    left, whole = manifest.parameters
    facts = {
        "base model": _named(base),
        "layers": f"{len(manifest.kept)} of {base.layers}",
        "layers dropped": ", ".join(map(str, manifest.dropped)),
        "parameters": f"{left:,} of {whole:,}",
        "plan from": _said(manifest.plan.how),
        "merged LoRA": manifest.merged or "",
        **_setting(manifest),
    }
    return f"""{_front(base, "transformers")}
# {base.name}, {len(manifest.kept)} of {base.layers} layers

{USE}

## How it was made

{"" if manifest.merged else "Nothing was trained: the layers that are left are as they were. "}\
`layerif_manifest.json` holds the whole record, and says which layer each of them was.

{_table(facts)}
"""


def opening_code(base: str, *, own_method: bool) -> str:
    """How an adapter is opened, in words and code.

    Args:
        base: the model that it is for, as it was opened: hub id, folder, GGUF file or alias.
        own_method: whether it is of the method that only `layerif.adapters` makes known to PEFT.
    """
    path = Path(base).expanduser()
    name = repr(str(path.resolve()) if path.exists() else base)
    if path.suffix == ".gguf" or (base in ALIASES and not path.exists()):
        why = "The base model is a GGUF file, which layerif opens."
        code = f'import layerif\n\nmodel, tokenizer = layerif.open_model({name}, adapter=".")'
    else:
        why, before = "", ""
        if own_method:
            why = (
                "Importing `layerif.adapters` makes this kind of adapter known to PEFT, which "
                "without the import stops with a `KeyError: 'LORA_MOE'`."
            )
            before = "import layerif.adapters  # before from_pretrained\n"
        code = f"""{before}from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = {name}
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), ".")"""
    where = 'In this folder; elsewhere give its path, or its name on the hub, in place of ".".'
    return f"## Use\n\n{' '.join(filter(None, (why, where)))}\n\n```python\n{code}\n{GENERATE}\n```"


def _front(base: ModelInfo, library: str) -> str:
    """What the hub reads of a card."""
    lines = [f"library_name: {library}", "pipeline_tag: text-generation"]
    if HUB_ID.fullmatch(base.name) and not Path(base.name).exists():
        lines.append(f"base_model: {base.name}")
    return "\n".join(["---", *lines, "tags:", "- layerif", "---", ""])


def _named(base: ModelInfo) -> str:
    return f"{base.name} ({base.architecture}{f', {base.caveat}' if base.caveat else ''})"


def _terms(base: ModelInfo) -> str:
    """Where they are, of a model that is not freely licensed and that an alias opens."""
    alias = ALIASES.get(base.name)
    return (alias.terms or "") if alias else ""


def _plan(plan: Plan) -> dict[str, str]:
    return {
        f"{plan.kind} of each layer": ", ".join(f"{value:g}" for value in plan.allocation),
        "plan from": _said(plan.how),
    }


def _setting(record: Finetuning | Manifest | DroppedLayers | QuantizedManifest) -> dict[str, str]:
    made = record.setting
    return {"precision": f"{made.dtype} on {made.device}", "versions": _said(made.versions)}


def _ends(losses: list[Any]) -> str:
    """The first and the last."""
    return ", ".join(f"{e.loss:.4f} (step {e.step})" for e in losses[:1] + losses[1:][-1:])


def _said(values: Mapping[str, Any]) -> str:
    """Single values: a search's rounds, with their seconds, and its hashes are in the plan."""
    return ", ".join(
        f"{name} {value}"
        for name, value in values.items()
        if isinstance(value, str | int | float)
        and name != "seconds"
        and not HASH.fullmatch(str(value))
    )


def _table(facts: Mapping[str, str]) -> str:
    """Two columns of Markdown, without what is empty."""
    cells = {name: " ".join(value.split()).replace("|", "\\|") for name, value in facts.items()}
    rows = [f"| {name} | {cell} |" for name, cell in cells.items() if cell]
    return "\n".join(["| | |", "| --- | --- |", *rows])
