"""What libraries raise while they read a model, as errors that begin with the cause."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError

import torch

from layerif.errors import InputError, LayerifError, MissingDependencyError
from layerif.model.quiet import quiet_transformers

# Characters of its cause that an error gives at most.
LONGEST_CAUSE = 300
# Words of messages that give no command, and the packages of PyPI that they ask for. A tokenizer of
# sentencepiece is tried as one of tiktoken after it, so that the message may name either.
PACKAGES = {
    "sentencepiece": "sentencepiece tiktoken",
    "tiktoken": "sentencepiece tiktoken",
    "flashattention": "flash-attn",
} | {
    name: name
    for name in (
        "auto-round",
        "autoawq",
        "bitsandbytes",
        "compressed-tensors",
        "gptqmodel",
        "hqq",
        "kernels",
        "mistral-common",
        "optimum-quanto",
        "protobuf",
        "torchao",
    )
}
# Errors whose text alone says little.
TERSE = (ArithmeticError, AssertionError, AttributeError, LookupError)


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
        # Its report of weights that do not fit becomes one sentence where the weights are read.
        with quiet_transformers(warnings=False):
            yield
    except LayerifError:
        raise
    except BaseException as error:
        # A panic in the Rust of tokenizers is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _translated(error, what) from error


def cause_of(error: BaseException) -> str:
    """What an error says, on one line that is not long; with its type where that says more."""
    if type(error).__name__.startswith("StrictDataclass") and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    text = " ".join(str(error).split()).rstrip(".;: ")
    if len(text) > LONGEST_CAUSE:
        text = f"{text[: LONGEST_CAUSE - 3]}..."
    terse = isinstance(error, TERSE) or " " not in text
    return f"{type(error).__name__}: {text}".rstrip(": ") if terse else text


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is that of a device, or of the machine, without memory for more."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in ("can't allocate memory", "out of memory")
    )


def _translated(error: BaseException, what: str) -> LayerifError:
    cause = cause_of(error)
    if "trust_remote_code" in str(error):
        return InputError(
            f"{what} brings Python code of its own; read it, and pass trust_remote_code=True to "
            "run it here"
        )
    if packages := _missing_packages(error):
        return MissingDependencyError(
            f"{packages.replace(' ', ' or ')} is missing here, and needed to read {what}; install "
            f"with: pip install {packages} ({cause})"
        )
    return InputError(f"{cause} (while reading {what})")


def _missing_packages(error: BaseException) -> str | None:
    """The packages of PyPI that an error asks for; None for an error of another kind."""
    text = str(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        asked = error.name.partition(".")[0].replace("_", "-")
    elif command := re.search(r"pip install (?:-\S+ )*[\"'`]*([A-Za-z][\w.-]*)", text):
        asked = command[1]
    elif isinstance(error, ImportError | PackageNotFoundError) or "install" in text:
        plain = text.lower().replace("_", "-")
        asked = next((word for word in PACKAGES if word in plain), "")
    else:
        return None
    # An architecture that it does not know yet is no missing package.
    return None if asked in ("", "transformers") else PACKAGES.get(asked, asked)
