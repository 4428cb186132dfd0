"""llama.cpp as `make engine` builds it, called as a person calls it."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Tokens of a window of llama-perplexity; the second half of each is scored.
WINDOW = 512


@torch.no_grad()
def own_perplexity(model: Any, tokenizer: Any, text: Path, windows: int) -> float:
    """As llama-perplexity has it: of the second half of each window, but its first token.

    Where texts begin with a token of their own, it stands in the place of each window's first.
    """
    ids = tokenizer(text.read_text(encoding="utf-8"))["input_ids"]
    begins = ids[0] == tokenizer.bos_token_id
    nats = []
    for window in range(windows):
        own = torch.tensor([ids[window * WINDOW : (window + 1) * WINDOW]])
        if begins:
            own[0, 0] = tokenizer.bos_token_id
        logits = model(input_ids=own).logits[0, WINDOW // 2 : -1].double()
        nats.append(torch.nn.functional.cross_entropy(logits, own[0, WINDOW // 2 + 1 :]))
    return math.exp(float(torch.stack(nats).mean()))


@dataclass(frozen=True)
class LlamaCpp:
    """Its folder: the source with the converters, their packages, and the programs."""

    folder: Path

    def run(self, program: str, *arguments: object) -> str:
        """The output of one of its programs, all of it; on one thread where it says how."""
        return self._called([self.folder / "cmake" / "bin" / program, *arguments])

    def converted(self, folder: Path, out: Path) -> Path:
        """A model's folder as a GGUF file in float32."""
        self._script("convert_hf_to_gguf.py", folder, "--outtype", "f32", "--outfile", out)
        return out

    def converted_lora(self, adapter: Path, base: Path, out: Path) -> Path:
        """A LoRA's folder as a GGUF file in float32."""
        self._script(
            "convert_lora_to_gguf.py", adapter, "--base", base, "--outtype", "f32", "--outfile", out
        )
        return out

    def perplexity(self, model: Path, text: Path, windows: int, *more: object) -> float:
        """Over the second halves of the first windows."""
        out = self.run(
            "llama-perplexity",
            *("-m", model, "-f", text, "-c", WINDOW, "-b", WINDOW, "--chunks", windows),
            *("-t", 1, *more),
        )
        return float(re.findall(r"Final estimate: PPL = ([0-9.]+)", out)[0])

    def rate(self, model: Path, *, generated: int, repetitions: int) -> list[float]:
        """Tokens a second in each repetition of generating, on one thread."""
        out = self.run(
            "llama-bench",
            *("-m", model, "-p", 0, "-n", generated, "-r", repetitions, "-t", 1, "-o", "json"),
        )
        (bench,) = json.loads(out[out.index("[") : out.rindex("]") + 1])
        return [float(rate) for rate in bench["samples_ts"]]

    def _script(self, name: str, *arguments: object) -> str:
        return self._called([sys.executable, self.folder / "llama.cpp" / name, *arguments])

    def _called(self, command: list[object]) -> str:
        paths = [str(self.folder / "python"), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        done = subprocess.run(
            list(map(str, command)),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:]
        return done.stdout
