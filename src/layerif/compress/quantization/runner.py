"""Quantise a model decoder layer by decoder layer, each projection by its share of a plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from layerif.artifacts import Matrix, Plan, QuantizedManifest, QuantizedModule
from layerif.compress.figures import Figures
from layerif.compress.held import Taken
from layerif.compress.layerwise import calibrated, each_layer
from layerif.compress.quantization.base import Quantizer
from layerif.compress.quantization.compressor import refuse_coded
from layerif.compress.quantization.grid import Coded, group_width
from layerif.compress.quantization.options import GridOptions, QuantizeOptions
from layerif.compress.quantization.registry import QUANTIZERS
from layerif.compress.quantization.rtn import rtn
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.options import takes
from layerif.data import Corpus, SelfText
from layerif.errors import InputError, NumericalError
from layerif.model.layers import DecoderLayers, Projection, find_decoder_layers, unwrapped
from layerif.model.opening import Tokenizer, describe, setting
from layerif.model.precision import stored_precision, word_of
from layerif.plans.kinds.bits import BITS
from layerif.plans.maps.bits import LEVELS
from layerif.plans.maps.stored import WHOLE, stored_bytes

# What is kept of a projection in a layer's step.
CODES, SCALES, ZEROS = "codes", "scales", "zeros"
# Is shown the integers of each projection, by its canonical name.
Keep = Callable[[str, Coded], None]


@takes(QuantizeOptions)
def quantize(
    model: Any,
    plan: Plan | int,
    *,
    options: QuantizeOptions,
    tokenizer: Tokenizer | None = None,
    calibration: Corpus | SelfText | str | Sequence[str] | None = None,
    steps: Steps = NO_STEPS,
    keep: Keep | None = None,
) -> QuantizedManifest:
    """Round the weights of the decoder layers' projections to few bits, in place.

    A layer's statistics come from the calibration text as the rounded layers below hand it on. The
    model keeps its precision: a folder of it is for measuring, and is no smaller.

    Args:
        model: a causal LM of transformers, changed in place. Where PEFT has put adapters in it, the
            weights under them are rounded, with the adapters active, and these stay as they are.
        plan: bits of each decoder layer or projection, or one number for all: 2 to 8, or 16, which
            leaves a projection as it is.
        options: how weights are rounded, and on how much text; each by keyword too.
        tokenizer: the model's tokenizer; `rtn` with `ranges="minmax"` needs none.
        calibration: a corpus, whose calibration part is used, text, or `SelfText()` for text that
            the model samples from itself.
        steps: keeps finished layers, so that a run cut short can go on.
        keep: is shown the integers of each projection of less than 16 bits.

    Returns:
        The manifest, with the bytes of each projection.

    Raises:
        InputError: the plan belongs to another model, the calibration text is missing or too
            short, or a projection's weight is quantised already; names it.
        NumericalError: weights or activations are not finite, or a Hessian cannot be factorised.
    """
    began = time.perf_counter()
    model = unwrapped(model)
    layers = find_decoder_layers(model)
    refuse_coded(layers.projections)
    info, grid = describe(model), options.part(GridOptions)
    plan = as_plan(plan, layers)
    plan.check_fits(info, "bits")
    asked = bits_of(plan, layers)
    work = _Rounding(QUANTIZERS.find(grid.method), grid, asked, keep)
    with calibrated(
        model,
        layers,
        work,
        options=options,
        tokenizer=tokenizer,
        calibration=calibration,
        steps=steps,
    ) as (visits, about):
        # The layers are calibrated on what the embeddings will give them.
        others = embeddings_of(model, options.embeddings, grid)
        modules = each_layer(layers, visits, work, steps)
    numel = sum(own.numel for own in modules)
    return QuantizedManifest(
        model=info,
        plan=plan,
        method=grid.method,
        group_size=grid.group_size,
        symmetric=grid.symmetric,
        offset=grid.offset,
        scales=grid.scales,
        bits=sum(own.bits * own.numel for own in modules) / numel,
        bytes=sum(own.bytes for own in modules),
        modules=modules,
        others=others,
        dense=dict(layers.rest),
        calibration=about,
        seconds=round(time.perf_counter() - began, 3),
        setting=setting(model),
        precision=word_of(next(p.dtype for p in model.parameters() if p.is_floating_point())),
    )


@dataclass(frozen=True)
class _Rounding:
    """Bits, as many in each projection as are asked for."""

    quantizer: Quantizer
    grid: GridOptions
    asked: Mapping[str, int]
    keep: Keep | None
    doing: str = "quantising"

    @property
    def method(self) -> str:
        return self.grid.method

    @property
    def statistics(self) -> Taken | None:
        return self.quantizer.statistics(self.grid)

    def change(
        self, projection: Projection, statistics: Any
    ) -> tuple[Figures, dict[str, torch.Tensor]]:
        bits = self.asked[projection.key]
        if bits == WHOLE:
            return Figures(), {}
        one = self.quantizer.quantizable(projection, projection.weight, statistics, self.grid)
        coded = one.coded(bits)
        weight = coded.decoded().to(projection.weight.dtype)
        if not bool(weight.isfinite().all()):
            raise NumericalError(
                f"a scale of {projection.key} leaves the range of {self.grid.scales}; try "
                "scales='bfloat16'"
            )
        figures = Figures(one.error(weight), one.damping)
        projection.weight.copy_(weight)
        kept = {CODES: coded.codes, SCALES: coded.scales}
        return figures, kept if coded.zeros is None else {**kept, ZEROS: coded.zeros}

    def restore(self, projection: Projection, kept: Mapping[str, torch.Tensor]) -> None:
        if kept:
            projection.weight.copy_(self._coded(projection, kept).decoded())

    def entry(
        self,
        projection: Projection,
        figures: Figures,
        seconds: float,
        kept: Mapping[str, torch.Tensor],
    ) -> QuantizedModule:
        bits = self.asked[projection.key]
        if self.keep is not None and kept:
            self.keep(projection.key, self._coded(projection, kept))
        return QuantizedModule(
            module=projection.key,
            bits=bits,
            out_features=projection.out_features,
            in_features=projection.in_features,
            bytes=stored_bytes(projection.out_features, projection.in_features, bits, self.grid),
            error=figures.error,
            damping=figures.damping,
            seconds=seconds,
        )

    def _coded(self, projection: Projection, kept: Mapping[str, torch.Tensor]) -> Coded:
        width = group_width(projection.in_features, self.grid.group_size)
        bits = self.asked[projection.key]
        return Coded(bits, width, kept[CODES], kept[SCALES], kept.get(ZEROS))


@torch.no_grad()
def embeddings_of(model: Any, bits: int | None, grid: GridOptions) -> list[Matrix]:
    """The token embeddings and an untied head: rounded in place to `bits`, unless these are None.

    Left as they are, they count in the precision of the model's files.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    weights = [module.weight for module in modules if module is not None]
    tied = len(weights) > 1 and weights[0] is weights[1]
    found = []
    for weight in weights[:1] if tied else weights:
        rows, columns = weight.shape
        size = weight.numel() * stored_precision(model).itemsize
        if bits is not None:
            weight.copy_(rtn(weight.data, None, bits, grid).decoded())
            size = stored_bytes(rows, columns, bits, grid)
        found.append(
            Matrix(
                name=names[id(weight)],
                out_features=rows,
                in_features=columns,
                bits=bits,
                bytes=size,
                tied=tied,
            )
        )
    return found


def as_plan(plan: Plan | int, layers: DecoderLayers) -> Plan:
    """A plan; of one number the same for all layers.

    Raises:
        InputError: the number is not one of bits.
    """
    if isinstance(plan, Plan):
        return plan
    if plan not in LEVELS:
        raise InputError(f"{plan} bits were asked for; expected {BITS.legal}")
    return Plan(
        kind="bits",
        allocation=[int(plan)] * len(layers),
        total=int(plan),
        layer_sizes=[int(size) for size in layers.sizes],
        how={"map": "uniform"},
    )


def bits_of(plan: Plan, layers: DecoderLayers) -> dict[str, int]:
    """The bits of each projection, by its canonical name.

    Raises:
        InputError: the plan goes by projections, and names others than these, or of other sizes.
    """
    plan.check_projections({p.key: p.numel for p in layers.projections})
    return {p.key: int(plan.level_of(p.key)) for p in layers.projections}
