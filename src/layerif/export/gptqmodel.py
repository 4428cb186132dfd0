"""GPTQModel: a `QuantizeConfig` as JSON, whose `dynamic` names what differs from the rest."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict

from layerif.errors import InputError
from layerif.export.base import Export, Request, Written, among, group_sizes, raised
from layerif.export.options import IntegerOptions
from layerif.plans.maps.fused import fused_group
from layerif.plans.maps.stored import WHOLE


def bits(request: Request) -> Written:
    """The most common levels as the base, and a pattern for each other level.

    GPTQModel takes the first pattern that matches from the beginning of a module's name; vLLM asks
    the same patterns for fused names, so these are among them.
    """
    chosen = request.options
    targets, notes = raised(request.targets, chosen.fused)
    targets, more = among(targets, (2, 3, 4, 5, 6, 7, 8, WHOLE), "GPTQModel")
    sizes, still = group_sizes(targets, chosen.group_size)
    levels = {t.key: (t.bits, sizes[t.key] if t.bits != WHOLE else 0) for t in targets}
    weights: Counter[tuple[int, int]] = Counter()
    for t in targets:
        weights[levels[t.key]] += t.numel
    whole = [level for level in weights if level[0] == WHOLE]
    if len(whole) == len(weights):
        raise InputError("the plan leaves every projection at 16 bits, so nothing is quantised")
    base = max((level for level in weights if level[0] != WHOLE), key=lambda one: weights[one])
    patterns: dict[tuple[tuple[int, int], tuple[str, ...]], list[int]] = defaultdict(list)
    by_owner: dict[tuple[int, str, tuple[int, int]], list[str]] = defaultdict(list)
    for t in targets:
        if levels[t.key] != base:
            owner, _, name = t.inside.rpartition(".")
            by_owner[t.layer, owner, levels[t.key]] += [name]
            engine = fused_group(t.key).rpartition(".")[2]
            if chosen.fused != "keep" and engine != name:
                by_owner[t.layer, owner, levels[t.key]] += [engine]
    for (layer, owner, level), names in by_owner.items():
        patterns[level, (owner, *dict.fromkeys(names))].append(layer)
    last = re.escape(request.path.rpartition(".")[2])
    dynamic = {}
    for (level, (owner, *names)), layers in patterns.items():
        numbers = "|".join(map(str, layers))
        inside = re.escape(f"{owner}.") if owner else ""
        sign = "-" if level[0] == WHOLE else "+"
        pattern = rf"{sign}:.*\b{last}\.({numbers})\.{inside}({'|'.join(map(re.escape, names))})$"
        dynamic[pattern] = {} if sign == "-" else {"bits": level[0], "group_size": level[1]}
    config = {
        "bits": base[0],
        "group_size": base[1],
        "sym": chosen.symmetric,
        "dynamic": dynamic,
    }
    usage = (
        "from gptqmodel import GPTQModel, QuantizeConfig; "
        f"GPTQModel.load({request.place!r}, QuantizeConfig(**json.load(open('{{file}}'))))"
    )
    return Written(json.dumps(config, indent=2) + "\n", usage, (*notes, *more, *still))


GPTQMODEL = Export("GPTQModel", {"bits": bits}, IntegerOptions)
