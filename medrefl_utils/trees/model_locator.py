"""Locate the first wrong step of a wrong path by asking a model."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pandas as pd

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.records import Continuation, Question, Sampling
from medrefl_utils.exam import prompts
from medrefl_utils.exam.answers.reader import split_thinking
from medrefl_utils.models.asking import ReplyReader, ask_until_valid, count_faults
from medrefl_utils.models.generators.interface import Generator

_WRONG = (
    r"(?:wrong|incorrect|erroneous|mistaken|flawed|faulty|false|invalid|inaccurate|error|errors|mistake|mistakes|flaw)"
)
_N = r"(?:(?:step|number|no\.?|\#)\W{0,6}){0,2}(?P<n>\d{1,4})(?![\w%]|[.,]\d|\s?(?:-|–|or\b|to\b)\s?(?:step\s)?\d)"
_LABELS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # "First wrong step: 3", "first_wrong_step": 3, "the first incorrect step is step [3]"
        rf"\bfirst[\s_-]{{0,2}}{_WRONG}[\s_-]{{0,2}}step\b(?:\W|_|\bis\b|\bn\b|\bnumber\b){{0,12}}?{_N}",
        # "the first step that goes wrong is 3", "the first error occurs in step 3"
        rf"\bfirst\s(?:step\s(?:that|which|to)\s[^.\n\d]{{0,40}}?|{_WRONG}\b[^.\n\d]{{0,40}}?)\b(?:is|in|at|on|with)\b\W{{0,6}}{_N}",
        # "Step 3 is the first wrong step", "step 3 is the first that goes wrong"
        r"\bstep\W{0,6}(?P<n>\d{1,4})\W{0,6}\s?(?:is|was)\s(?:the\s|where\sthe\s)?first\b",
    )
)
# "Step 3 is wrong", "Step 3 contains an error", "the error is in step 3", "it goes wrong at step 3"
_VERDICT = re.compile(
    rf"\bstep\W{{0,6}}(?P<n>\d{{1,4}})\W{{0,6}}\s?(?:(?:is|was|seems|looks)\s(?!not\s)(?:\w+ly\s|the\s|also\s|where\s)?"
    rf"(?:[\w\s]{{0,20}}\sgoes\s)?{_WRONG}\b|(?:is\snot|isn['’]t|was\snot|wasn['’]t)\s(?:\w+ly\s)?(?:right|correct|true|"
    rf"supported|justified|accurate|valid)\b|(?:goes|went)\swrong|(?:contains|makes|has|introduces)\s(?:the\s|an?\s)?"
    rf"(?:\w+\s)?{_WRONG}\b)"
    rf"|\b(?:{_WRONG}|goes\swrong|went\swrong)\b\s(?:is\s|occurs\s|lies\s|starts\s|begins\s)?(?:in|at|with)\s"
    r"step\W{0,6}(?P<m>\d{1,4})\b",
    re.IGNORECASE,
)
_ALONE = re.compile(r"^\W{0,6}(?:boxed\{)?(?:step\W{0,4})?(?P<n>\d{1,4})\W{0,6}$", re.IGNORECASE | re.MULTILINE)
_NAMED = re.compile(r"\bstep\W{0,6}(\d{1,4})\b(?!\s?(?:-|–|or\b|to\b|/))", re.IGNORECASE)
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# "the third step", "step three", "First wrong step: three"; not "the first step that goes wrong".
_ORDINAL = re.compile(
    rf"\b({'|'.join(_ORDINALS[1:])}|first(?=\sstep\s(?:is|was|contains|has|makes)\b))\sstep\b", re.IGNORECASE
)
_NUMBER = re.compile(rf"(?<=step)(\W{{1,6}})({'|'.join(_NUMBERS)})\b", re.IGNORECASE)
_REMARK = re.compile(r"\([^()\d]{0,60}\)")
_ALL_RIGHT = re.compile(
    r"\bno\s(?:\w+\s)?(?:wrong|incorrect|error|mistake)|\b(?:is|are)\s(?:all\s)?(?:right|correct|fine|sound)\b",
    re.IGNORECASE,
)


def locate_errors_by_model(
    questions: Mapping[str, Question],
    steps: pd.DataFrame,
    paths: pd.DataFrame,
    generator: Generator,
    *,
    sampling: Sampling,
    seed: int,
) -> tuple[pd.DataFrame, DropCounts]:
    """Ask a model for the first wrong step of each wrong path.

    The model is asked about wrong paths that state an answer, in questions that also have a right path.

    Args:
        questions: {question_id: question}.
        steps: trees, columns of STEPS.
        paths: ``trees.paths(steps)``.
        generator: the model that is asked.
        sampling: sampling of its replies.
        seed: seed of its replies.

    Returns:
        A row per path that was asked about: question_id, leaf, node_id (the first wrong step; null where no reply named
        a step of the path), as ``rank_corrections`` takes it. And the counts: ``locator_unreadable`` (fault: paths
        without a readable reply; they have no located error).
    """
    has_right = paths["outcome"].gt(0).groupby(paths["question_id"]).transform("any")
    stated = steps.loc[steps["stop"] == "answer", ["question_id", "node_id"]]
    wrong = paths[has_right & (paths["outcome"] < 0)].merge(stated, on=["question_id", "node_id"])
    text = steps.set_index(["question_id", "node_id"])["text"]
    asked = []
    for path in wrong.itertuples():
        chain = text.loc[[(path.question_id, node) for node in path.nodes]].tolist()
        asked.append(
            (prompts.locate(questions[path.question_id], chain), _step_of(len(chain), generator.thinking_open))
        )
    found = ask_until_valid(generator, asked, sampling=sampling, seed=seed, title="errors")
    nodes = [
        None if one.value is None else int(path[one.value - 1]) for one, path in zip(found, wrong["nodes"], strict=True)
    ]
    located = pd.DataFrame({"question_id": wrong["question_id"], "leaf": wrong["node_id"]})
    where = [f"question {row.question_id!r}, path to leaf {row.node_id}" for row in wrong.itertuples()]
    dropped = DropCounts({"locator_unreadable": 0})
    dropped.add(count_faults(found, "locator", where))
    return located.assign(node_id=pd.array(nodes, dtype="Int32")), dropped


def read_first_wrong_step(reply: Continuation, *, thinking_open: bool = False) -> int | None:
    """Read the number of the first wrong step from a reply; None where it names none, or several without a verdict.

    A reply that was truncated at the token limit is not read, because its verdict may be missing.

    Read in this order: a labelled number ("First wrong step: 3", the last one counts), the first step that is called
    wrong ("Step 2 is wrong"), a number on a line of its own (the last one counts), and the only step that is named. So
    "Step 1 is right. First wrong step: 3" is 3. A thinking before the verdict is not read. Digits of any
    script and the words for 1 to 10 count. ``thinking_open``: the model's chat template opened its thinking.
    """
    if reply.stop == "length":
        return None
    _, text = split_thinking(reply.text, thinking_open=thinking_open)
    text = _ORDINAL.sub(lambda found: f"step {_ORDINALS.index(found[1].casefold()) + 1}", _REMARK.sub("", text))
    text = _NUMBER.sub(lambda found: f"{found[1]}{_NUMBERS.index(found[2].casefold()) + 1}", text)
    labels = [match for pattern in _LABELS for match in pattern.finditer(text)]
    if labels:
        return int(max(labels, key=lambda match: match.start("n"))["n"])
    if verdict := _VERDICT.search(text):
        return int(verdict["n"] or verdict["m"])
    if alone := list(_ALONE.finditer(text)):
        return int(alone[-1]["n"])
    named = {int(number) for number in _NAMED.findall(text)}
    return named.pop() if len(named) == 1 and not _ALL_RIGHT.search(text) else None


def _step_of(n: int, thinking_open: bool = False) -> ReplyReader[int]:
    """Make a reader that accepts the numbers 1 to ``n``."""

    def read(reply: Continuation) -> tuple[int | None, str]:
        step = read_first_wrong_step(reply, thinking_open=thinking_open)
        return (step, "") if step is not None and 1 <= step <= n else (None, "unreadable")

    return read
