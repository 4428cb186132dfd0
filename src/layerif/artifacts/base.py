"""What every artifact shares: strict validation, errors of one paragraph, and who made it."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from layerif.errors import InputError
from layerif.files import read_json, write_json

RECORDED_PACKAGES = ("layerif", "torch", "transformers", "numpy")


class Record(BaseModel):
    """A strict record: unknown fields and values that are not finite are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )

    @classmethod
    def parse(cls, value: Any, where: str) -> Self:
        """Validate plain data.

        Raises:
            InputError: naming `where` it came from and each field that is wrong.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: "
                f"{fault['msg'].removeprefix('Value error, ')}"
                for fault in error.errors(include_url=False)
            )
            raise InputError(f"{where} is not a valid {cls.__name__}: {faults}") from None


class JsonArtifact(Record):
    """A record that is a JSON file of its own."""

    def save(self, path: str | Path) -> None:
        """Write as readable JSON, whole or not at all."""
        write_json(Path(path), self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read back what `save` wrote, or what a person wrote in its form.

        Raises:
            InputError: missing, not JSON, or not valid.
        """
        return cls.parse(read_json(Path(path), f"JSON of the form {cls.__name__}"), str(path))


class ModelInfo(Record):
    """Which model an artifact speaks of.

    Attributes:
        name: as it was opened.
        architecture: class name in transformers.
        layers: number of decoder layers.
        layer_sizes: parameters in the projections of each layer.
        adapter: kinds and names of the PEFT adapters at work in it, e.g. `LORA default`.
        caveat: something a reader must know beside every figure, e.g. dequantised weights.
    """

    name: str
    architecture: str
    layers: int
    layer_sizes: list[int]
    adapter: str | None = None
    caveat: str | None = None

    @property
    def title(self) -> str:
        """What tables call it: its name, and the adapter where it is not the model alone."""
        return self.name if self.adapter is None else f"{self.name} with {self.adapter}"


class Setting(Record):
    """What figures may depend on beside model, data and parameters."""

    dtype: str
    device: str
    versions: dict[str, str]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that do the arithmetic."""
    packages = {name: metadata.version(name) for name in RECORDED_PACKAGES}
    return {"python": platform.python_version(), **packages}
