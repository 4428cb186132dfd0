"""What a reply answers: the candidate it states, or nothing that can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerif.data import load_task
from layerif.data.catalogue import CATALOGUE
from layerif.data.declared import ANSWER_BY_LETTER, ANSWER_BY_TEXT
from layerif.evaluation.extraction import extract_answer, is_settled

LETTERS = tuple(ANSWER_BY_LETTER.format(letter=letter) for letter in "ABCDE")
MRPC = ("Answer: not equivalent.", "Answer: equivalent.")
NAMES = ("Answer: New York.", "Answer: New York City.", "Answer: York.", "Answer: well.")
NUMBERS = ("Answer: 3.", "Answer: 3.5.", "Answer: 12.", "Answer: 1,200.")


@pytest.mark.parametrize(
    ("candidates", "reply", "answer"),
    [
        # By letter, in the forms that models use.
        (LETTERS, "Answer: The answer is B.", 1),
        (LETTERS, "answer: the answer is b", 1),
        (LETTERS, "B", 1),
        (LETTERS, "(B)", 1),
        (LETTERS, " B.", 1),
        (LETTERS, "B) A long walk", 1),
        (LETTERS, "(B) A long walk", 1),
        (LETTERS, "Option C.", 2),
        (LETTERS, "The correct answer is E. Run fast.", 4),
        (LETTERS, 'The answer is "E. drawer"', 4),
        (LETTERS, "**Answer:** C", 2),
        (LETTERS, "**Answer**: **C**", 2),
        (LETTERS, "The best choice is (D) since it is warm", 3),
        (LETTERS, "I thought about it.\nThe answer is\n\nC\n", 2),
        (LETTERS, "The answer is C.\nThe answer is D.", 2),
        # No option, or not one option.
        (LETTERS, "F", None),
        (LETTERS, "A dog barks.", None),
        (LETTERS, "The answer is a dog.", None),
        (LETTERS, "The answer is not B.", None),
        (LETTERS, "A or B", None),
        (LETTERS, "The answer is A, B and C.", None),
        (LETTERS, "A/B", None),
        (LETTERS, "Both (A) and (B)", None),
        (LETTERS, "A. fleas\nB. drawer\nC. clouds", None),
        (LETTERS, 'Reply "Answer: The answer is" and the letter of your choice.', None),
        (LETTERS, "", None),
        # One candidate within another.
        (MRPC, "Answer: equivalent.", 1),
        (MRPC, "Answer: not equivalent.", 0),
        (MRPC, "NOT  EQUIVALENT", 0),
        (MRPC, "The answer is not equivalent.\n\n### Response:\nThe answer is", 0),
        (MRPC, 'The answer is not "not equivalent."', None),
        (MRPC, 'The answer is not "equivalent".', None),
        (MRPC, "The answer is nonequivalent.", None),
        (MRPC, "The answer is equivalently put.", None),
        (MRPC, "They are equivalent.", None),
        (MRPC, "equivalent or not equivalent", None),
        (MRPC, "Equivalent, not equivalent", None),
        (NAMES, "New York", 0),
        (NAMES, "new york city is the answer", 1),
        (NAMES, "York. New York", 2),
        (NAMES, "well-known", None),
        (NUMBERS, "3 apples", 0),
        (NUMBERS, "Answer: 3.", 0),
        (NUMBERS, "3.5", 1),
        (NUMBERS, "3.7", None),
        (NUMBERS, "31", None),
        (NUMBERS, "12,000", None),
        (NUMBERS, "Answer: 1,200", 3),
        # A user's own.
        ((" yes", " no"), "Yes, it is.", 0),
        ((" yes", " no"), "nobody knows", None),
        ((" yes", " no"), "no.\nyes.", None),
        (("apple", "Apple"), "Apple", 1),
        (("apple", "Apple"), "Answer: apple pie", 0),
        (("apple", "Apple"), "APPLE", None),
        (("Answer: yes.", "yes"), "yes", 1),
        (("two\nlines", "two"), "Answer: two\n  lines", 0),
        (("(a)", "(b)"), "b", 1),
        (("C", "C++"), "C++", 1),
        (("C", "C++"), "The answer is C.", 0),
        ((" one", "one"), "one", None),
    ],
)
def test_replies(candidates, reply, answer):
    assert extract_answer(reply, candidates) == answer


@pytest.mark.parametrize(
    ("reply", "settled"),
    [
        ("The answer is B", False),
        ("The answer is B.", False),
        ("The answer is B.\n", True),
        ("\nAnswer: B\nand", True),
        ("B\n", False),  # the list of the options may follow
        ("Well\n", False),
        ("The answer is\n", False),
    ],
)
def test_an_answer_is_settled_with_its_line(reply, settled):
    assert is_settled(reply, LETTERS) == settled


words = st.text("abcdexyzé", min_size=2, max_size=6).filter(lambda w: w not in {"or", "and", "nor"})
phrases = st.lists(words, min_size=1, max_size=3).map(" ".join)
answers = st.lists(phrases, min_size=2, max_size=6, unique=True)
forms = st.sampled_from([ANSWER_BY_TEXT, "{text}", " {text}"])
leads = st.sampled_from(
    ["Answer: ", "answer:\n", "The answer is ", "So the correct option is: **", ""]
)
ends = st.sampled_from(["", ".", "!", ". And", ".\n\nThe answer is", "\n"])


@given(texts=answers, form=forms, lead=leads, end=ends, data=st.data())
def test_a_candidate_after_a_lead_in_is_read_as_itself(texts, form, lead, end, data):
    candidates = [form.format(text=text) for text in texts]
    index = data.draw(st.integers(0, len(texts) - 1))
    shown = data.draw(st.sampled_from([str, str.upper, str.title]))(texts[index])
    assert extract_answer(lead + shown + end, candidates) == index
    assert extract_answer(candidates[index], candidates) == index


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5, unique_by=str.strip))
def test_any_text_of_a_candidate_is_read_as_itself(candidates):
    for index, candidate in enumerate(candidates):
        assert extract_answer(candidate, candidates) == index


@given(texts=answers, reply=st.text("0123456789 .,:\n()fghijklmnopqrstuvw", max_size=60))
def test_what_no_candidate_has_a_letter_of_is_no_answer(texts, reply):
    for form in (ANSWER_BY_TEXT, "{text}"):
        candidates = [form.format(text=text) for text in texts]
        assert extract_answer(reply, candidates) is None
        assert extract_answer("Answer: " + reply, candidates) is None


pieces = st.sampled_from(
    [
        "The answer is ",
        "Answer:",
        " B",
        "B.",
        "(C)",
        "A",
        " or ",
        "and",
        ",",
        "\n",
        " ",
        "dog",
        ": ",
        "**",
    ]
)


@given(
    reply=st.lists(pieces, max_size=8).map("".join), more=st.lists(pieces, max_size=5).map("".join)
)
def test_no_more_text_changes_a_settled_answer(reply, more):
    # Would see: a generation cut short at an answer that the rest of the text takes back.
    if is_settled(reply, LETTERS):
        assert extract_answer(reply + more, LETTERS) == extract_answer(reply, LETTERS)


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_the_candidates_of_real_sets_are_read_as_themselves(name: str, data_dir: Path):
    if not (data_dir / name).is_dir():
        pytest.skip(f"no {name} in {data_dir}")
    task = load_task(name, data_dir=data_dir)
    rows = {e.choices for e in task.splits["test"] if e.choices}
    assert bool(rows) != (name == "winogrande")
    for choices in sorted(rows)[:500]:
        for index, choice in enumerate(choices):
            for reply in (choice, choice + " ", "\n" + choice):
                assert extract_answer(reply, choices) == index
            if not task.continues:
                for reply in (choice.lower(), f"{choice}\n{choice}", choice.removesuffix(".")):
                    assert extract_answer(reply, choices) == index


def test_the_candidates_of_facts_are_read_as_themselves():
    for example in load_task("facts").splits["test"]:
        for index, choice in enumerate(example.choices):
            gist = choice.removeprefix("Answer: ").removesuffix(".")
            for reply in (choice, gist, gist.upper(), f"The answer is {gist}, I think."):
                assert extract_answer(reply, example.choices) == index
