"""The processes that work together, as `torchrun` and `accelerate launch` start them.

Each has its rank and their count in its environment. They agree on small values and add up vectors
over a gloo group, on GPUs too: what goes from one to another lies in main memory. With one process
everything here does nothing. `accelerate.PartialState` cannot do this: it uses the default group,
which sends nothing from main memory on GPUs and cannot be ended, and it needs torch to count.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from layerif.errors import InputError, LayerifError, ProcessError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

# A process that dies closes its connections, and the others hear of it at once; this is for a
# machine that falls silent, and longer than one process ever waits for the last batch of another.
TIMEOUT = timedelta(hours=2)


def count() -> int:
    """How many processes there are."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """Which of them this one is, from 0."""
    return _number("RANK", 0) if count() > 1 else 0


def local_rank() -> int:
    """Which of those on this machine."""
    return _number("LOCAL_RANK", 0) if count() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that prints and writes for all."""
    return rank() == 0


def share(work: Sequence[T]) -> Sequence[T]:
    """This process's share of a list that is the same in all."""
    return work[rank() :: count()]


def barrier() -> None:
    """Wait for every process to come here.

    Raises:
        ProcessError: one of them has ended.
    """
    import torch

    add([torch.zeros(1)])


def agreed(call: Callable[[], T]) -> T:
    """What `call` returns in the first process, for all; an error it raises there is raised by all.

    Args:
        call: returns plain values.
    """
    if count() == 1:
        return call()
    answer: list[Any] = [None, None]
    if is_first():
        try:
            answer[0] = call()
        except LayerifError as error:
            answer[1] = error
    with _talking() as group:
        _distributed().broadcast_object_list(answer, 0, group=group)
    if answer[1] is not None:
        raise answer[1]
    value: T = answer[0]
    return value


def add(tensors: Sequence[torch.Tensor]) -> None:
    """Put the sum over the processes in place of each tensor, the same bits in every process."""
    _exchange(tensors, lambda own, group: _distributed().all_reduce(own, group=group))


def spread(tensors: Sequence[torch.Tensor]) -> None:
    """Put the first process's tensors in place of every other's."""
    _exchange(tensors, lambda own, group: _distributed().broadcast(own, 0, group=group))


def _exchange(
    tensors: Sequence[torch.Tensor], exchange: Callable[[torch.Tensor, Any], object]
) -> None:
    """Each tensor after an exchange of its copy in main memory, where there are more processes."""
    if count() == 1:
        return
    with _talking() as group:
        for tensor in tensors:
            own = tensor.cpu().contiguous()
            exchange(own, group)
            tensor.copy_(own)


@contextmanager
def _talking() -> Iterator[Any]:
    """The group, made when it is first wanted; a connection that breaks is an error of ours."""
    try:
        yield _group()
    except RuntimeError as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ProcessError(
            f"process {rank()} of {count()} has lost the others: one of them ended, and says why "
            "itself, or its machine cannot be reached; what is finished is kept, and the same "
            f"command goes on from there, with any number of processes ({why})"
        ) from error


@cache
def _group() -> Any:
    distributed = _distributed()
    if not distributed.is_initialized():
        names = ("RANK", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if name not in os.environ]
        if missing:
            raise InputError(
                f"the environment says {count()} processes (WORLD_SIZE), and {missing[0]} is "
                "not set; start them by torchrun or accelerate launch, or unset WORLD_SIZE to work "
                "alone"
            )
        distributed.init_process_group("gloo", timeout=TIMEOUT)
    # Not the default group: a script's may be NCCL's, which takes nothing that lies in main memory,
    # and no default group can be ended (see _end).
    group = distributed.new_group(backend="gloo", timeout=TIMEOUT)
    atexit.register(_end)
    return group


def _end() -> None:
    """End the group's threads while Python still runs: one that outlives it aborts the process.

    Such a thread may still hold the tensors of the last exchange, and freeing them takes Python's
    lock. `destroy_process_group` only forgets a group; its threads are waited for when the last
    reference goes. That of the default group never does: torch keeps it as a default argument.
    """
    distributed = _distributed()
    if distributed.is_initialized():  # a script may have ended all groups itself
        distributed.destroy_process_group(_group())
    _group.cache_clear()


def _distributed() -> Any:
    import torch.distributed

    return torch.distributed


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else otherwise
