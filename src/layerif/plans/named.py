"""Every plan that has a name: by whose scores, by which map, and what a comparison tries.

A comparison of sparsity lets each plan try as many values of its map's one parameter as any other,
the authors' own first; OWL has a parameter of its metric besides, M, which is tried after four
values of the map's. Which of them is taken is decided by the loss on held-out calibration text,
never on what the comparison is judged by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from layerif.core.choices import Orientation
from layerif.core.registry import Registry
from layerif.errors import InputError
from layerif.plans.kinds import controls

if TYPE_CHECKING:
    from layerif.artifacts import Plan
    from layerif.plans.allocate import Scores
    from layerif.plans.kinds.base import Map

# Makes the scores of a metric, from its name (None: scores have no effect) and its options.
Scorer = Callable[[str | None, Mapping[str, Any]], "Scores"]

INFLUENCE = "influence"
# Of the authors' value, in the order in which they are tried.
FACTORS = (1.0, 2.0, 0.5, 3.0, 1.5, 0.25)
# How many of them come before other values of the metric's parameter.
FIRST = 4
# Of `layerif search depth`, which says whose they are.
DEPTH_STRATEGIES = (
    "shortlist",
    "greedy",
    "quadratic",
    "block_influence",
    "contiguous",
    "taylor",
    "random",
)


@dataclass(frozen=True)
class NamedPlan:
    """How a plan is made.

    Attributes:
        map: of the kind, by name; or a function of scores (n,), and of options by keyword, whose
            levels are fitted to the total (`allocate`); or a `Map`.
        metric: of the scores: `influence`, a registered one, or None where scores have no effect.
        options: of the map, where the plan's authors have others than the map's own.
        title: in tables of a recipe; None for the name.
        tuned: option of the map that a comparison of sparsity tries other values of.
        orientations: tried in turn; None is the map's own.
        of_metric: options of the metric other than its own, each tried with the map's own.
        searched: options of the search that the plan comes from, whose rounds are its tries; None
            for a plan that comes from scores.
        rival: whether a searched plan is another method's, which ours is compared with.
        made_into: what is trained in its place, from the plan and the rank of one expert.
    """

    map: str | Callable[..., Any] | Map
    metric: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    title: str | None = None
    tuned: str | None = None
    orientations: Sequence[Orientation | None] = (None,)
    of_metric: Sequence[Mapping[str, Any]] = ()
    searched: Mapping[str, Any] | None = None
    rival: bool = False
    made_into: Callable[[Plan, int], Plan] | None = None

    @property
    def ours(self) -> bool:
        """Whether it is a search of this package's own."""
        return self.searched is not None and not self.rival

    def tries(self, kind: str, most: int) -> list[tuple[Mapping[str, Any], dict[str, Any]]]:
        """For each try the options of the metric, and those of `allocate`."""
        from layerif.plans.kinds.base import Map
        from layerif.plans.kinds.registry import KINDS

        own = {"map": self.map, **self.options}
        if self.tuned is None:
            return [({}, own)]
        given = self.map
        map = KINDS.find(kind).maps[given] if isinstance(given, str) else Map.given(given)
        authors = {**map.options, **self.options}[self.tuned]
        of_map = [
            own | {self.tuned: authors * factor} | ({"orientation": turn} if turn else {})
            for factor in FACTORS
            for turn in self.orientations
        ]
        found: list[tuple[Mapping[str, Any], dict[str, Any]]] = [({}, each) for each in of_map]
        found[FIRST:FIRST] = [(options, of_map[0]) for options in self.of_metric]
        return found[:most]

    def plans(
        self, kind: str, total: float, scores: Scorer, *, tries: int = 1, rank: int = 1
    ) -> list[Plan]:
        """The plan as its authors make it, and the other tries.

        Args:
            kind, total: as for `allocate`, whose errors are raised.
            scores: makes the scores.
            tries: how many at most.
            rank: of each expert.
        """
        from layerif.plans.allocate import allocate

        made = [
            allocate(scores(self.metric, of_metric), kind, total, **of_map)
            for of_metric, of_map in self.tries(kind, tries)
        ]
        return [self.made_into(plan, rank) for plan in made] if self.made_into else made


# Random moves in the manner of EvoPress (arXiv 2410.14649), judged by forward passes alone.
EVOLUTION = NamedPlan(
    "evolution", searched={"strategy": "evolution", "start": "uniform"}, rival=True
)


def _layerif(**options: Any) -> NamedPlan:
    return NamedPlan(
        "layerif", INFLUENCE, options, tuned="epsilon", orientations=("direct", "inverse")
    )


def _mola(digits: str) -> NamedPlan:
    return NamedPlan("mola", options={"shape": [int(digit) for digit in digits]})


def _plain_lora(uniform: Plan, rank: int) -> Plan:
    """Plain LoRA of one rank, whose total rank is that of the experts."""
    from layerif.artifacts import Plan
    from layerif.plans.maps.counts import equal_rank

    ranks = [equal_rank(uniform.allocation, rank)] * len(uniform.allocation)
    how = {"map": "uniform", "experts": uniform.total}
    return Plan(kind="ranks", allocation=ranks, how=how)


PLANS: dict[str, Registry[NamedPlan]] = {
    "sparsity": Registry(
        "sparsity plan",
        {
            "uniform": NamedPlan("uniform"),
            # LayerIF (arXiv 2505.23811): of positive influence, its other two ways, and a control.
            "layerif": _layerif(),
            "layerif-all": _layerif(aggregate="all"),
            "layerif-top": _layerif(aggregate="top"),
            "layerif-shuffled": _layerif(shuffle=0),
            # AlphaPruning (arXiv 2410.10912).
            "alphapruning": NamedPlan(
                "layerif", "pl_alpha", {"smooth": False}, title="AlphaPruning", tuned="epsilon"
            ),
            # OWL (arXiv 2310.05175).
            "owl": NamedPlan(
                "owl",
                "outlier_ratio",
                title="OWL",
                tuned="lam",
                of_metric=({"multiple": 3.0}, {"multiple": 7.0}),
            ),
            # DLP (arXiv 2505.23807).
            "dlp": NamedPlan("dlp", "dlp", title="DLP", tuned="lam"),
            "random": NamedPlan("layerif", "random", {"smooth": False}, tuned="epsilon"),
            # What LayerIF's published plans of two 7B models come to, without any scores.
            "spare-first": NamedPlan(controls.SPARE_FIRST, tuned="by"),
            "prune-last": NamedPlan(controls.PRUNE_LAST, tuned="by"),
            # At the operating point.
            "marginal": NamedPlan(
                "marginal", searched={"strategy": "marginal", "start": "uniform"}
            ),
            # From one pass on the model as it was; and moved from there.
            "quadratic": NamedPlan("quadratic", searched={"strategy": "quadratic"}),
            "quadratic-marginal": NamedPlan(
                "marginal", searched={"strategy": "marginal", "start": "quadratic"}
            ),
            "evolution": EVOLUTION,
        },
    ),
    "bits": Registry(
        "bits plan",
        {
            "uniform": NamedPlan("uniform"),
            # llama.cpp's mixes: values, writes of the MLP, and the outer layers.
            "rule": NamedPlan(
                "linear", "rule_of_thumb", {"granularity": "projection"}, title="rule of thumb"
            ),
            "local": NamedPlan(
                "quadratic", searched={"strategy": "quadratic", "criterion": "local"}, rival=True
            ),
            # As mlx-lm's dynamic_quant: first order alone.
            "slope": NamedPlan(
                "quadratic", searched={"strategy": "quadratic", "criterion": "first"}, rival=True
            ),
            "quadratic": NamedPlan("quadratic", searched={"strategy": "quadratic"}),
            "quadratic-token": NamedPlan(
                "quadratic", searched={"strategy": "quadratic", "criterion": "token"}
            ),
            "evolution": EVOLUTION,
        },
    ),
    "experts": Registry(
        "experts plan",
        {
            "uniform": NamedPlan("uniform"),
            "layerif": NamedPlan("power", INFLUENCE),
            "layerif-all": NamedPlan("power", INFLUENCE, {"aggregate": "all"}),
            "layerif-top": NamedPlan("power", INFLUENCE, {"aggregate": "top"}),
            "layerif-shuffled": NamedPlan("power", INFLUENCE, {"shuffle": 0}),
            # AlphaLoRA (arXiv 2410.10054): the alphas as they are, to its authors' power.
            "alphalora": NamedPlan("power", "pl_alpha", {"beta": 2.5, "normalise": "none"}),
            # MoLA (arXiv 2402.08562).
            **{f"mola-{digits}": _mola(digits) for digits in ("2468", "5555", "8642")},
            "random": NamedPlan("power", "random"),
            "lora": NamedPlan("uniform", made_into=_plain_lora),
        },
    ),
    "depth": Registry(
        "depth plan",
        {
            **{n: NamedPlan(n, searched={"strategy": n}) for n in DEPTH_STRATEGIES},
            "uniform": NamedPlan("uniform"),
            "last": NamedPlan("last"),
        },
    ),
}


def register_plan(
    name: str, map: str | Callable[..., Any], *, kinds: Sequence[str], **fields: Any
) -> None:
    """Give a plan a name: comparisons, recipes and help then know it.

    Args:
        name: not taken yet.
        map: as `NamedPlan`.
        kinds: that it is for, of `sparsity`, `bits`, `experts` and `depth`.
        fields: others of `NamedPlan`, such as the `metric` of the scores.

    Raises:
        InputError: the name is taken, or plans of a kind are not compared.
    """
    if unknown := [kind for kind in kinds if kind not in PLANS]:
        raise InputError(f"plans of {unknown[0]} have no names; kinds are {', '.join(PLANS)}")
    for kind in kinds:
        PLANS[kind].require_free(name)
        if kind == "experts" and _mola_digits(name):
            raise InputError(f"{name!r} is a plan of MoLA's own shape; choose another name")
    for kind in kinds:
        PLANS[kind].register(name, NamedPlan(map, **fields))


def _mola_digits(name: str) -> str:
    """The groups that a name such as `mola-2468` states; empty for other names."""
    group, _, digits = name.partition("-")
    return digits if group == "mola" and digits.isdecimal() else ""


def find_plan(name: str, kind: str) -> NamedPlan:
    """The plan of a name; for experts `mola-` takes any digits, one a group of layers.

    Raises:
        InputError: there is none; lists those that exist.
    """
    if kind == "experts" and (digits := _mola_digits(name)):
        return _mola(digits)
    return PLANS[kind].find(name)


def plans_among(words: Iterable[str], kind: str) -> list[NamedPlan]:
    """The plans of those words that are names of plans."""
    known = PLANS[kind].names()
    return [PLANS[kind].find(word) for word in words if word in known]


def check_influence(names: Iterable[str], kind: str) -> None:
    """Refuse plans made from influence, of which there is none.

    Raises:
        InputError: one is.
    """
    for name in names:
        if find_plan(name, kind).metric == INFLUENCE:
            raise InputError(
                f"the plan {name} is made from influence: give scores, a run folder of "
                "`layerif score`, or leave the plan out"
            )
