"""The weights of a folder's projections, as they lie in its files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from layerif.errors import InputError
from layerif.model.folders import weights_of
from layerif.model.layers import Projection, find_decoder_layers
from layerif.model.opening import open_model, open_skeleton


@dataclass(frozen=True, eq=False)
class StoredModel:
    """A model's folder whose tensors are read one at a time, without a model that is built.

    Attributes:
        folder: of the model.
        trust_remote_code: run code that the folder brings.
        projections: of the skeleton, by canonical name.
        paths: of the skeleton's parameters, by `id`.
        files: the open file of each tensor, by its name.
    """

    folder: Path
    trust_remote_code: bool
    projections: Mapping[str, Projection]
    paths: Mapping[int, str]
    files: Mapping[str, Any]
    _joined: dict[str, Projection] = field(default_factory=dict)

    def weights(self, modules: Iterable[str]) -> Iterator[torch.Tensor | None]:
        """(out, in) of each projection in turn; None where there is no such tensor.

        Experts whose files hold other tensors than the model, which transformers joins as it opens
        them, are read from the whole model.
        """
        stored: dict[str, torch.Tensor | None] = {}
        for module in modules:
            projection, weight = self.projections.get(module), None
            if projection is not None:
                path = self.path(projection)
                if path not in stored:  # experts of one parameter come one after another
                    stored = {path: self.tensor(path)}
                if (whole := stored[path]) is not None:
                    weight = projection.part(whole)
                elif projection.fused is not None:
                    weight = self._opened()[module].weight
            yield weight

    def path(self, projection: Projection) -> str:
        """The name of a projection's parameter."""
        return self.paths[id(projection.parameter)]

    def tensor(self, parameter: str) -> torch.Tensor | None:
        """The tensor of a parameter by its name, or as some models write it; None without one.

        Without its prefix, or, where a language model is one of several parts, with the parts of
        its name in another order.
        """
        parts = sorted(parameter.split("."))
        reordered = (name for name in self.files if sorted(name.split(".")) == parts)
        names = chain((parameter, parameter.split(".", 1)[-1]), reordered)
        found: torch.Tensor | None = next(
            (self.files[n].get_tensor(n) for n in names if n in self.files), None
        )
        return found

    def _opened(self) -> dict[str, Projection]:
        if not self._joined:
            model, _ = open_model(
                self.folder, device="cpu", trust_remote_code=self.trust_remote_code
            )
            self._joined.update({p.key: p for p in find_decoder_layers(model).projections})
        return self._joined


@contextmanager
def stored_model(folder: Path, *, trust_remote_code: bool = False) -> Iterator[StoredModel]:
    """A model's folder, its files open.

    Raises:
        InputError: the folder holds no model, or weights that cannot be read.
    """
    skeleton = open_skeleton(folder, trust_remote_code=trust_remote_code)
    paths = {id(parameter): path for path, parameter in skeleton.named_parameters()}
    projections = {p.key: p for p in find_decoder_layers(skeleton).projections}
    with ExitStack() as open_:
        files = _files_of_tensors(folder, open_)
        yield StoredModel(folder, trust_remote_code, projections, paths, files)


def _files_of_tensors(folder: Path, open_: ExitStack) -> dict[str, Any]:
    """By the name of each tensor in a model's safetensors the open file that holds it.

    Others that lie in the folder are not the model's.
    """
    found = [path for path in weights_of(folder).files if path.suffix == ".safetensors"]
    if not found:
        raise InputError(f"{folder} holds no safetensors; expected a model folder of layerif")
    files: dict[str, Any] = {}
    for path in found:
        try:
            file = open_.enter_context(safe_open(path, framework="pt"))
        except SafetensorError as error:
            raise InputError(f"{path} cannot be read as safetensors: {error}") from None
        files |= dict.fromkeys(file.keys(), file)
    return files
