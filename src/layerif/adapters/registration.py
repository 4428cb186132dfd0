"""Makes the method known to PEFT, whose enumeration of methods takes no new ones.

A plain string serves as a key of its tables. PEFT without this import does not know the method, and
raises a KeyError that names it.
"""

from __future__ import annotations

from typing import Any

from peft import mapping

from layerif.adapters.config import PEFT_TYPE, LoraMoeConfig
from layerif.adapters.tuner import LoraMoeModel


def register() -> None:
    """Enter the method in PEFT's tables; a second time changes nothing."""
    tables: tuple[tuple[dict[Any, Any], Any], ...] = (
        (mapping.PEFT_TYPE_TO_CONFIG_MAPPING, LoraMoeConfig),
        (mapping.PEFT_TYPE_TO_TUNER_MAPPING, LoraMoeModel),
        (mapping.PEFT_TYPE_TO_PREFIX_MAPPING, LoraMoeModel.prefix),
    )
    for table, entry in tables:
        table[PEFT_TYPE] = entry
