"""What a power cut, a full disk or a hand does to a file, for tests of what is read back."""

from __future__ import annotations

from safetensors.torch import load_file, save_file


def zeroed(path):
    """The length is there, and what was written never came to the disk."""
    path.write_bytes(bytes(path.stat().st_size))


def zeroed_at_the_end(path):
    """The header came to the disk, the numbers did not."""
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes(8))


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-5])


def emptied(path):
    path.write_bytes(b"")


def garbled(path):
    path.write_bytes(b"\x99" * 100)


def _rewritten(path, change):
    save_file({name: change(name, tensor) for name, tensor in load_file(path).items()}, path)


def of_another_shape(path):
    _rewritten(path, lambda _, tensor: tensor.flatten()[:1].clone())


def of_another_type(path):
    _rewritten(path, lambda _, tensor: tensor.bool())


def under_other_names(path):
    save_file({f"other {name}": tensor for name, tensor in load_file(path).items()}, path)


DAMAGES = (
    zeroed,
    zeroed_at_the_end,
    cut_off,
    emptied,
    garbled,
    of_another_shape,
    of_another_type,
    under_other_names,
)


class Killed(BaseException):
    pass
