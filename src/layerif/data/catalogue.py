"""The declared tasks: public data sets, and what is made of them.

A task is an entry in `CATALOGUE`; nothing else has to change for a new one. Where the hub's test
split has no labels, or there is none, the validation split is what we test on, and validation is
set apart from train.

The fields under `harness` ask as lm-evaluation-harness (0.4) does zero-shot.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from layerif.data.declared import ANSWER_BY_TEXT, Layout, TaskSpec
from layerif.data.sources import Row

_BY_LETTER = 'Reply "Answer: The answer is" and the letter of your choice.'
_SCIENCE = (
    "Choose the option that answers the question, or completes the sentence, in line with "
    "elementary science.\n\n"
)
_TESTED_ON_VALIDATION = Layout(validation="train", test="validation")
_VALIDATION_ALONE = Layout("validation", "validation", "validation")


def _with_hint(row: Row) -> Row:
    """ScienceQA: many questions come without a hint, and then without the line for it."""
    return {**row, "context": f"Context: {row['hint']}\n" if row["hint"] else ""}


_SCIENCEQA_COLUMNS = ("question", "choices", "answer", "hint")


def _in_context(row: Row) -> Row:
    """WinoGrande: the sentence up to its gap with either name filled in, and what comes after.

    Scored like this, by the likelihood of what follows, the task is about the sentence rather than
    about which name is likelier by itself (T. H. Trinh and Q. V. Le, arXiv 1806.02847).
    """
    before, _, after = row["sentence"].partition("_")
    return {
        "context_options": [before + row["option1"], before + row["option2"]],
        "continuation": after.strip(),
        "label": {"1": 0, "2": 1}.get(row["answer"]),
    }


def _without_marks(row: Row) -> Row:
    """HellaSwag: WikiHow articles have marks of their parts in brackets."""
    query = f"{row['activity_label']}: {row['ctx']}"
    return {**row, "query": _prose(query), "endings": [_prose(text) for text in row["endings"]]}


def _capitalised(row: Row) -> Row:
    """HellaSwag as lm-evaluation-harness has it, which takes the marks out in its own way."""
    context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
    query = _without_brackets(f"{row['activity_label']}: {context}")
    return {**row, "query": query, "endings": [_without_brackets(e) for e in row["endings"]]}


def _capitalised_again(row: Row) -> Row:
    """The same from a folder, where both parts of the context are one text.

    The second is the beginning of a sentence, so where the text does not end with a full stop it is
    what comes after the last one.
    """
    query: str = row["query"]
    if not query.endswith("."):
        before, stop, after = query.rpartition(". ")
        query = before + stop + after.capitalize()
    endings = [_without_brackets(text) for text in row["endings"]]
    return {**row, "query": _without_brackets(query), "endings": endings}


def _without_brackets(text: str) -> str:
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _prose(text: str) -> str:
    text = re.sub(r"\[(header|title|step|substeps)\]", "", text.replace(" [title]", ". "))
    return text.replace("  ", " ").strip()


def _asked(prompt: str, **more: Any) -> dict[str, Any]:
    """The form of lm-evaluation-harness: a text, and after it a blank and the candidate."""
    return {"instruction": "", "prompt": prompt, "candidate": " {text}", **more}


def _arc(name: str, config: str, asks: str) -> TaskSpec:
    return TaskSpec(
        name=name,
        asks=asks,
        repo="allenai/ai2_arc",
        config=config,
        instruction=f"{_SCIENCE}Question: {{question}}\n{{options}}\n\n{_BY_LETTER}",
        options="choices",
        count="3-5",
        label="answerKey",
        harness=_asked("Question: {question}\nAnswer:"),
        folder=Layout(validation="train", renamed={"answerKey": "label"}),
    )


_SPECS = (
    TaskSpec(
        name="mrpc",
        asks="do two sentences mean the same?",
        repo="nyu-mll/glue",
        config="mrpc",
        instruction=(
            "Read two sentences from news articles and decide whether they mean the same.\n\n"
            "Sentence 1: {sentence1}\nSentence 2: {sentence2}\n\n"
            'Reply "Answer: equivalent." if they do and "Answer: not equivalent." if they do not.'
        ),
        label="label",
        answers=("not equivalent", "equivalent"),
        candidate=ANSWER_BY_TEXT,
    ),
    TaskSpec(
        name="cola",
        asks="is a sentence acceptable English?",
        repo="nyu-mll/glue",
        config="cola",
        instruction=(
            "Read a sentence and decide whether a native speaker would find it acceptable "
            "English.\n\n"
            "Sentence: {sentence}\n\n"
            'Reply "Answer: acceptable." if it is and "Answer: unacceptable." if it is not.'
        ),
        label="label",
        answers=("unacceptable", "acceptable"),
        candidate=ANSWER_BY_TEXT,
        hub=_TESTED_ON_VALIDATION,
        folder=_TESTED_ON_VALIDATION,
    ),
    TaskSpec(
        name="rte",
        asks="does one text entail another?",
        repo="nyu-mll/glue",
        config="rte",
        instruction=(
            "Read two texts and decide whether the second has to be true if the first one is.\n\n"
            "Text 1: {sentence1}\nText 2: {sentence2}\n\n"
            'Reply "Answer: entailment." if it does and "Answer: not entailment." if it does not.'
        ),
        label="label",
        answers=("entailment", "not entailment"),
        candidate=ANSWER_BY_TEXT,
        harness=_asked(
            "{sentence1}\nQuestion: {sentence2} True or False?\nAnswer:", answers=("True", "False")
        ),
        hub=_TESTED_ON_VALIDATION,
        folder=_TESTED_ON_VALIDATION,
    ),
    TaskSpec(
        name="commonsense_qa",
        asks="everyday questions",
        repo="tau/commonsense_qa",
        instruction=(
            "Use common sense to choose the best answer to the question.\n\n"
            f"Question: {{question}}\n{{options}}\n\n{_BY_LETTER}"
        ),
        options="choices",
        count="5",
        label="answerKey",
        hub=_TESTED_ON_VALIDATION,
        folder=_TESTED_ON_VALIDATION,
    ),
    TaskSpec(
        name="openbookqa",
        asks="elementary science, with a step of reasoning",
        repo="allenai/openbookqa",
        config="main",
        instruction=f"{_SCIENCE}Question: {{question_stem}}\n{{options}}\n\n{_BY_LETTER}",
        options="choices",
        count="4",
        label="answerKey",
        harness=_asked("{question_stem}"),
    ),
    TaskSpec(
        name="scienceqa_text",
        asks="school questions of all subjects, those without a picture",
        repo="derek-thomas/ScienceQA",
        instruction=(
            "Choose the option that answers the question.\n\n"
            f"Question: {{question}}\n{{context}}{{options}}\n\n{_BY_LETTER}"
        ),
        options="choices",
        count="2-5",
        label="answer",
        hub=Layout(columns=_SCIENCEQA_COLUMNS, row=_with_hint, empty="image"),
        folder=Layout(train="validation", columns=_SCIENCEQA_COLUMNS, row=_with_hint),
    ),
    _arc("arc_easy", "ARC-Easy", "science exams, the easier questions"),
    _arc("arc_challenge", "ARC-Challenge", "science exams, the harder questions"),
    TaskSpec(
        name="boolq",
        asks="a passage and a question of yes or no",
        repo="google/boolq",
        instruction=(
            "Read the passage and answer the question.\n\n"
            "Passage: {passage}\nQuestion: {question}?\n\n"
            'Reply "Answer: yes." or "Answer: no."'
        ),
        label="answer",
        answers=("no", "yes"),
        candidate=ANSWER_BY_TEXT,
        # The passages of SuperGLUE begin with their title.
        harness=_asked(
            "{passage}\nQuestion: {question}?\nAnswer:",
            repo="aps/super_glue",
            config="boolq",
            label="label",
            folder=_VALIDATION_ALONE,
            harness_version=2.0,
        ),
        hub=_TESTED_ON_VALIDATION,
        folder=replace(_VALIDATION_ALONE, renamed={"answer": "label"}),
    ),
    TaskSpec(
        name="hellaswag",
        asks="which ending does a description of an activity have?",
        repo="Rowan/hellaswag",
        prompt="{query}",
        options="endings",
        count="4",
        candidate=" {text}",
        label="label",
        hub=replace(
            _TESTED_ON_VALIDATION,
            columns=("activity_label", "ctx", "endings", "label"),
            row=_without_marks,
        ),
        folder=_VALIDATION_ALONE,
        harness={
            "hub": replace(
                _TESTED_ON_VALIDATION,
                columns=("activity_label", "ctx_a", "ctx_b", "endings", "label"),
                row=_capitalised,
            ),
            "folder": replace(
                _VALIDATION_ALONE, columns=("query", "endings", "label"), row=_capitalised_again
            ),
        },
    ),
    TaskSpec(
        name="winogrande",
        asks="which of two names fits what follows?",
        repo="allenai/winogrande",
        config="winogrande_xl",
        contexts="context_options",
        continuation="continuation",
        count="2",
        candidate=" {text}",
        label="label",
        hub=replace(
            _TESTED_ON_VALIDATION,
            columns=("sentence", "option1", "option2", "answer"),
            row=_in_context,
        ),
        folder=_VALIDATION_ALONE,
        harness={},  # as it is
    ),
)
CATALOGUE: Mapping[str, TaskSpec] = {spec.name: spec for spec in _SPECS}
IN_HARNESS = sorted(spec.name for spec in _SPECS if spec.harness is not None)
