"""What the model card of an adapter says of loading it: PEFT does not know the method by itself."""

from __future__ import annotations

from pathlib import Path

from layerif.artifacts import CARD_FILE
from layerif.core.files import write_text
from layerif.report.cards import opening_code

IMPORT = "import layerif"
NEW = """---
library_name: peft
---

# A mixture of LoRA experts
"""
# As PEFT's card leaves it open.
HEADING = "## How to Get Started with the Model"
OPEN = "Use the code below to get started with the model.\n\n[More Information Needed]"


def complete_card(folder: Path, base_model: str | None) -> None:
    """Say in the card of an adapter's folder how it is loaded; a card that says so stays as it is.

    Args:
        folder: of the adapter, with the card that PEFT has written, or without one.
        base_model: hub id or folder of the model that it was trained on.
    """
    path = folder / CARD_FILE
    card = path.read_text(encoding="utf-8") if path.is_file() else NEW
    if IMPORT in card:
        return
    said = opening_code(base_model or "BASE_MODEL", own_method=True).removeprefix("## Use\n\n")
    if OPEN not in card:
        card = f"{card.rstrip()}\n\n{HEADING}\n\n{OPEN}\n"
    write_text(path, card.replace(OPEN, said))
