"""What the program itself reads back: what is not as it was written counts as absent.

Tensors lie in a safetensors file whose metadata hold a checksum of all that they are: their names,
types, shapes and bytes. A folder that others write for us is sealed with its files' checksums when
it is whole. So what was cut off, zeroed by a power cut, changed, or written for another purpose is
never taken for a result.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from layerif.core.files.disk import writing_to
from layerif.core.files.writing import new_file, write_json

if TYPE_CHECKING:
    import torch

CHECKSUM = "checksum"
SEAL = "checksums.json"
_PIECE = 1 << 20


def checksum(pieces: Iterable[memoryview | bytes], found: int = 0) -> int:
    """CRC-32 of bytes that come in pieces: two gigabytes a second, and accidents are found.

    Args:
        found: that of the bytes before these.
    """
    for piece in pieces:
        found = zlib.crc32(piece, found)
    return found


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], purpose: str = "") -> None:
    """Write tensors, whole or not at all.

    Args:
        path: of the file.
        tensors: by name.
        purpose: what they serve; they are found again for that alone.
    """
    from safetensors.torch import save_file

    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with new_file(path) as part:
        save_file(whole, part, metadata={CHECKSUM: _checksum(whole, purpose)})


def load_tensors(path: Path, purpose: str = "") -> dict[str, torch.Tensor] | None:
    """The tensors of a file; None where there is none, or not as `save_tensors` wrote them."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            said = (file.metadata() or {}).get(CHECKSUM)
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    return found if said == _checksum(found, purpose) else None


def _checksum(tensors: Mapping[str, torch.Tensor], purpose: str) -> str:
    def pieces() -> Iterable[memoryview | bytes]:
        yield purpose.encode()
        for name, tensor in sorted(tensors.items()):
            yield f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode()
            yield bytes_of(tensor)

    return f"{checksum(pieces()):08x}"


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor's numbers, row by row."""
    return as_bytes(tensor).numpy().data if tensor.numel() else memoryview(b"")


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """(bytes,) uint8 on the CPU, without a copy where it is there already."""
    import torch

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def seal(folder: Path) -> None:
    """Write the checksums of a folder's files beside them, once all of it is on the disk.

    Raises:
        DiskError: the disk refuses.
    """
    with writing_to(folder):
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SEAL]
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        write_json(folder / SEAL, {str(p.relative_to(folder)): checksum(_pieces(p)) for p in files})


def is_whole(folder: Path) -> bool:
    """Whether the files that a folder was sealed with are there, as they were then."""
    try:
        sealed = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        return bool(sealed) and all(
            checksum(_pieces(folder / name)) == said for name, said in sealed.items()
        )
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
