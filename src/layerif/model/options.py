"""Which model, and how it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from layerif.core.aliases import MODEL_HELP
from layerif.core.choices import Dtype
from layerif.core.options import Options, Rule, Shown


class OpeningOptions(Options):
    """How a model is opened."""

    title = "Model"

    dtype: Dtype = "float32"
    """Precision the model runs in."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ..., or auto."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    def open_named(self, model: str, **more: Any) -> tuple[Any, Any]:
        """A model and its tokenizer; `more` are further arguments of `open_model`."""
        from layerif.model.opening import open_model

        values = {name: value for name, value in self.values().items() if name != "model"}
        return open_model(model, **values, **more)


class ModelOptions(OpeningOptions):
    """Which model, and how it is opened."""

    model: str = Field(description=MODEL_HELP)

    def open(self, **more: Any) -> tuple[Any, Any]:
        """The model and its tokenizer; `more` are further arguments of `open_model`."""
        return self.open_named(self.model, **more)


class PlacedModelOptions(ModelOptions):
    """The same, on several devices."""

    device_map: Annotated[str | None, Shown("everything on one device")] = None
    """auto spreads a model larger than one GPU over all of them; in place of a device."""


class AdapterOptions(Options):
    """A PEFT adapter that the model is opened with."""

    title = "Model"
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("adapter_name", lambda v: v.get("adapter") is not None, "with {adapter}"),
    )

    adapter: Path | None = None
    """Folder of a LoRA, or of a mixture of LoRA experts, that PEFT has written."""
    adapter_name: str = "default"
    """Which one, where the folder holds several."""
