"""Tiny tokenizers of every kind of what is put around a text, fast and slow, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast, T5Tokenizer

from helpers.tiny import tiny_tokenizer

WORDS = ["▁", "▁the", "▁cat", "▁sat", "▁on", "a", "b", "c", "d", "e", "h", "i", "n", "o", "s", "t"]


def templated(single: str) -> Any:
    """Bytes, with <s> and </s> where the template has them; $A is the text."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def bert_like() -> Any:
    """[CLS] and [SEP], and neither BOS nor EOS."""
    tokens = ["[PAD]", "[CLS]", "[SEP]", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def two_in_front() -> Any:
    """<mask> and <s>, as GLM puts [gMASK] and <sop>."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    special = [("<mask>", tokenizer.mask_token_id), ("<s>", 1)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<mask> <s> $A", special_tokens=special
    )
    return tokenizer


def llama_like() -> Any:
    """A blank before the first word, and the blanks of words in their tokens, as SentencePiece."""
    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {token: index for index, token in enumerate([*special, *WORDS])}
    backend = Tokenizer(
        models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix="")
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def t5_like() -> Any:
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((w, -1.0) for w in WORDS)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0)


class _SlowBoth(ByT5Tokenizer):
    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return [self.bos_token_id, *super().build_inputs_with_special_tokens(token_ids_0)]


def slow_both() -> Any:
    return _SlowBoth(bos_token="<s>", extra_ids=0)


# What is put around a text: none, in front, behind, both; by the tokenizers of which family.
ZOO: dict[str, Callable[[], Any]] = {
    "gpt2": tiny_tokenizer,
    "llama": lambda: templated("<s> $A"),
    "sentencepiece": llama_like,
    "both": lambda: templated("<s> $A </s>"),
    "eos": lambda: templated("$A </s>"),
    "bert": bert_like,
    "glm": two_in_front,
    "t5": t5_like,
    "slow eos": ByT5Tokenizer,
    "slow both": slow_both,
}
FRONT = {
    "llama": 1,
    "sentencepiece": 1,
    "both": 1,
    "bert": 1,
    "glm": 2,
    "slow both": 1,
}
BEHIND = {"both": 1, "eos": 1, "bert": 1, "t5": 1, "slow eos": 1, "slow both": 1}
