"""Numbers from files of others: `.npy`, and safetensors in the form that we write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerif.core.files.reading import brief, check_file, parsing
from layerif.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NPY = b"\x93NUMPY"
# Bytes of a file of numbers: an influence matrix has 8 for each layer, projection and sample.
MOST_NUMBERS = 16 << 30


def read_npy(path: Path, what: str) -> NDArray[Any]:
    """The numbers of a `.npy` file.

    Raises:
        InputError: it cannot be read, is damaged, or holds something other than real numbers.
    """
    import numpy as np

    check_file(path, what)
    with parsing(path, what):
        with path.open("rb") as file:
            if file.read(len(_NPY)) != _NPY:
                raise InputError(f"{path} does not begin as a .npy file does; expected {what}")
        # Mapped, so that no size is believed before the file has as many bytes.
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        if values.dtype.kind not in "fiu":
            raise InputError(f"{path} holds values of type {values.dtype}; expected {what}")
        return np.array(values)


def read_numbers(path: Path, what: str) -> dict[str, NDArray[np.float64]]:
    """The tensors of a safetensors file, brought to float64.

    Raises:
        InputError: it cannot be read, is damaged, or holds something other than floats.
    """
    import numpy as np
    from safetensors import safe_open

    check_file(path, what, MOST_NUMBERS)
    found = {}
    with parsing(path, what), safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118, no mapping
            values = file.get_tensor(name)
            if values.dtype.kind != "f":
                raise InputError(
                    f"{path}: {brief(name)} is of type {values.dtype}; expected {what}"
                )
            found[name] = values.astype(np.float64, copy=False)
    return found
