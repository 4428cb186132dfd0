"""What every artifact shares: strict validation, errors of one paragraph, and who made it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from layerif.core.choices import instead_of
from layerif.core.files import Kind, brief, quoted, read_json, write_json
from layerif.errors import FieldError, InputError

RECORDED_PACKAGES = ("layerif", "torch", "transformers", "numpy")
# Letters of what is wrong with a record, in a message.
MOST_FAULTS = 400


class Record(BaseModel):
    """A strict record: unknown fields and values that are not finite are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )

    @classmethod
    def parse(cls, value: Any, where: str) -> Self:
        """Validate plain data.

        Raises:
            FieldError: naming `where` it came from and the fields that are wrong.
        """
        refuse_large(value, where)
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, path))}: {fault}" if path else fault
                for path, fault in faults_of(error, cls)
            )
            raise FieldError(
                f"{where}: {brief(faults, MOST_FAULTS)}; expected a valid {cls.__name__}"
            ) from None


Keys = tuple[int | str, ...]


def faults_of(error: ValidationError, record: type[BaseModel]) -> Iterator[tuple[Keys, str]]:
    """What is wrong with plain data, field by field: the path of keys to it, and why in words.

    An unknown key comes with the nearest that there is.

    Args:
        error: of validating the data.
        record: what it was validated as.
    """
    for fault in error.errors(include_url=False):
        # What begins with = tells records in one place apart, and is no key.
        path = tuple(key for key in fault["loc"] if not str(key).startswith("="))
        if fault["type"] == "missing":
            yield path, "it is missing"
        elif fault["type"] == "extra_forbidden":
            records = _records_at(record, path[:-1])
            renamed = {k: v for each in records for k, v in getattr(each, "renamed", {}).items()}
            known = (name for each in records for name in each.model_fields)
            new = renamed.get(path[-1])
            hint = f"it is called {new} now" if new else instead_of(path[-1], known)
            yield path, f"there is no such field; {hint}"
        else:
            yield path, expected(fault)


# What a number has to be, by pydantic's word for the fault, and the limit's name in its context.
BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("of at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("of at most", "le"),
}


def expected(fault: Any) -> str:
    """What one of pydantic's faults asks for, in words."""
    if fault["type"] in BOUNDS:
        how, limit = BOUNDS[fault["type"]]
        number = fault["ctx"][limit]
        return f"expected a number {how} {number:{',' if isinstance(number, int) else 'g'}}"
    if fault["type"] == "finite_number":
        return "expected a finite number"
    if fault["type"] == "literal_error":
        return f"expected one of {fault['ctx']['expected']}"
    return str(fault["msg"]).removeprefix("Value error, ")


def _records_at(annotation: Any, path: Keys) -> list[type[BaseModel]]:
    """The records that may lie at a path; indices and a mapping's own keys are passed over."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        found = [annotation]
    else:
        found = [each for part in get_args(annotation) for each in _records_at(part, ())]
    for place, key in enumerate(path):
        fields = [each.model_fields[key].annotation for each in found if key in each.model_fields]
        if fields:
            rest = path[place + 1 :]
            return [each for field in fields for each in _records_at(field, rest)]
    return found


class JsonArtifact(Record):
    """A record that is a JSON file of its own."""

    @classmethod
    def file_kind(cls) -> Kind:
        """By which its files are known."""
        return Kind(str(cls.model_fields["format"].default).partition("/")[0])

    def save(self, path: str | Path) -> None:
        """Write as readable JSON, whole or not at all, in place of another of its kind.

        Raises:
            InputError: `path` cannot be written, or is a file that is not of this kind.
        """
        value, kind = self.model_dump(mode="json"), None
        if "format" in value:
            # First, where `Kind.wrote` looks for it.
            value, kind = {"format": value.pop("format"), **value}, self.file_kind()
        write_json(Path(path), value, kind)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read back what `save` wrote, or what a person wrote in its form.

        Raises:
            InputError: missing, not JSON, or not valid.
        """
        return cls.parse(read_json(Path(path), f"JSON of the form {cls.__name__}"), str(path))


class ModelInfo(Record):
    """Which model an artifact is about.

    Attributes:
        name: as it was opened.
        architecture: class name in transformers.
        layers: number of decoder layers.
        layer_sizes: parameters in the projections of each layer; 0 where it has none.
        adapter: kinds and names of the PEFT adapters active in it, e.g. `LORA default`.
        caveat: something a reader must know beside every figure, e.g. dequantised weights.
    """

    name: str
    architecture: str
    layers: int = Field(ge=1)
    layer_sizes: list[int]
    adapter: str | None = None
    caveat: str | None = None

    @model_validator(mode="after")
    def _sized(self) -> Self:
        sizes = self.layer_sizes
        if len(sizes) != self.layers or min(sizes) < 0 or not any(sizes):
            raise ValueError(f"layer_sizes must hold a size for each of the {self.layers} layers")
        return self

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


def refuse_large(value: Any, where: str) -> None:
    """Refuse a whole number that counts of 64 bits do not hold, wherever in plain data it is.

    Raises:
        InputError: there is one.
    """
    left = [value]
    while left:
        found = left.pop()
        if isinstance(found, dict):
            left.extend(found.values())
        elif isinstance(found, list | tuple):
            left.extend(found)
        elif type(found) is int and not -(2**63) <= found < 2**63:
            raise InputError(
                f"{where} holds {quoted(found, 40)}; expected whole numbers below 2^63"
            )
