"""N:M patterns: of every M neighbouring weights along the input dimension N are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass

from layerif.errors import InputError


@dataclass(frozen=True, slots=True)
class Pattern:
    """N of every M inputs kept in each output row; written `2:4`."""

    keep: int
    group: int

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}"

    @property
    def sparsity(self) -> float:
        return 1 - self.keep / self.group

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """A pattern from its text.

        Raises:
            InputError: it is none.
        """
        found = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
        keep, group = map(int, found.groups()) if found else (0, 0)
        if not found or group < 1 or keep > group:
            raise InputError(
                f"{text!r} is no N:M pattern; write N:M with 0 <= N <= M, as in 2:4, which keeps "
                "two of every four weights along the inputs"
            )
        return cls(keep, group)

    def check_fits(self, module: str, in_features: int) -> None:
        """Refuse a projection whose inputs are no whole number of groups.

        Raises:
            InputError: they are not; names it.
        """
        if in_features % self.group:
            raise InputError(
                f"{module} has {in_features} inputs, which are no whole number of groups of "
                f"{self.group}; choose an N:M whose M divides the inputs of every projection"
            )
