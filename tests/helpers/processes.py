"""Several processes of one script, as a launcher would start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def members_of(count, script, *arguments):
    """The processes, with no launcher over them that would end one for the other's sake."""
    shared = os.environ | {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def ended(members):
    """What each said on its standard error; none is left running."""
    try:
        return [member.communicate(timeout=180)[1] for member in members]
    finally:
        for member in members:
            member.kill()
