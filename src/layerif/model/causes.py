"""What libraries raise while they read a model, as errors that begin with the cause."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError

import torch

from layerif.errors import InputError, LayerifError, MissingDependencyError
from layerif.model.quiet import quiet_transformers

# What an error says at most of its cause.
LONGEST_CAUSE = 300
# Packages that transformers reads some models with, where its message gives no command.
PACKAGES = (
    "sentencepiece",
    "tiktoken",
    "protobuf",
    "bitsandbytes",
    "gptqmodel",
    "autoawq",
    "compressed-tensors",
    "optimum-quanto",
    "auto-round",
    "torchao",
    "hqq",
    "mistral-common",
    "flash-attn",
    "kernels",
)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn whatever a library raises over a foreign model into one paragraph.

    Libraries take configurations, weights and tokenizers as they come, so that damage shows as any
    kind of error. Interruptions and errors of our own pass.

    Args:
        what: is being read, e.g. `the tokenizer of gpt2`.

    Raises:
        InputError, MissingDependencyError: in place of any other error.
    """
    try:
        with quiet_transformers():
            yield
    except LayerifError:
        raise
    except BaseException as error:
        # A panic in the Rust of tokenizers is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _translated(error, what) from error


def cause_of(error: BaseException) -> str:
    """What an error says, on one line that is not long; its type where that alone says much."""
    text = " ".join(str(error).split()).rstrip(".;: ")
    if len(text) > LONGEST_CAUSE:
        text = f"{text[: LONGEST_CAUSE - 3]}..."
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    if not text or not isinstance(error, OSError | ValueError | RuntimeError | ImportError):
        # A KeyError's text, say, is the key alone.
        return f"{type(error).__name__}: {text}".rstrip(": ")
    return text


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is that of a device, or of the machine, without memory for more."""
    said = str(error)
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "can't allocate memory" in said
        or "out of memory" in said
    )


def _translated(error: BaseException, what: str) -> LayerifError:
    if "trust_remote_code" in str(error):
        return InputError(
            f"Python code of its own comes with {what}: it brings Python code of its own; read it, "
            "and pass --trust-remote-code to run it here (trust_remote_code=True in Python; a "
            "recipe runs no such code)"
        )
    said = f"{cause_of(error)} (while reading {what})"
    if package := _missing_package(error):
        return MissingDependencyError(
            f"the package {package} is needed to read {what}; install it with: "
            f"pip install {package} ({cause_of(error)})"
        )
    if out_of_memory(error):
        return InputError(f"out of memory while reading {what}: {cause_of(error)}")
    return InputError(said)


def _missing_package(error: BaseException) -> str | None:
    """The package of PyPI that an error asks for; None for an error of another kind."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name.partition(".")[0].replace("_", "-")
    text = str(error)
    if not (isinstance(error, ImportError | PackageNotFoundError) or "install" in text):
        return None
    command = re.search(r"pip install (?:-\S+ )*[\"'`]*([A-Za-z][\w.-]*)", text)
    if command is not None:
        return command[1]
    plain = text.lower().replace("_", "-")
    return next((package for package in PACKAGES if package in plain), None)
