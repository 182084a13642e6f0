"""What a model writes for the pairs: reflections, the judge's scores, flowing thought, and where a path first errs.

Each reply is read and checked; one that fails is asked for again with another seed, at most twice, then given up and
counted by what was wrong with it last. Nothing here asks which generator it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import pandas as pd
from tqdm import tqdm

from medrefl_utils import prompts
from medrefl_utils.answers import extract_answer
from medrefl_utils.generators import Generator, seed_of
from medrefl_utils.pairs import Correction, Turn, with_texts
from medrefl_utils.prompts import Messages
from medrefl_utils.records import PAIRS, REFLECTIONS, Continuation, MedReflError, Question, Sampling

ATTEMPTS = 3
_T = TypeVar("_T")

# "The key is", "a different branch" and "a solution was given" are good medicine.
_LEAK = re.compile(
    r"\b(?:answer key|ground truth|gold (?:answer|letter|option)|the key (?:says|shows|gives|has)"
    r"|(?:other|another|second|alternative|replacement|reference|provided|given) (?:paths?|chains?)"
    r"|(?:replacement|replacing|reference|provided|given) (?:steps?|answer|solution)|steps that replace"
    r"|(?:steps?|answer|path) (?:(?:that|which) )?(?:I )?(?:was|were|is|are|has been|have been) "
    r"(?:given|shown|told|provided|supplied)"
    r"|I (?:was|am|have been|had been) (?:given|shown|told|provided)\b[^.]{0,40}"
    r"\b(?:answer|steps?|solution|path|key))\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_OPTION = re.compile(r"\b(?i:option|choice|letter|answer)\W{0,4}([A-Z])\b")
_NAMES = frozenset({"json", "boxed", "stated", "lone", "label"})
_SCORE = r"{}\W{{0,6}}([1-5])(?![\d.])(?:\s*/\s*5)?"
_SCORES = tuple(re.compile(_SCORE.format(name), re.IGNORECASE) for name in ("correctness", "logic"))
_LOCATED = re.compile(
    r"(?:first wrong step|step)\W{0,6}(\d{1,4})|^\W{0,4}(\d{1,4})\W{0,4}$", re.IGNORECASE | re.MULTILINE
)


@dataclass
class Asked(Generic[_T]):
    """One prompt with all that came of it; ``value`` is None where every attempt was refused."""

    messages: Messages
    value: _T | None = None
    replies: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


Read = Callable[[Continuation], "tuple[_T | None, str]"]
"""Reads a reply: its value and "", or None and what is wrong with it in a word."""


def ask(
    generator: Generator, asked: Sequence[tuple[Messages, Read[_T]]], *, sampling: Sampling, seed: int, title: str
) -> list[Asked[_T]]:
    """Ask all prompts together, and those whose reply is refused again, until ``ATTEMPTS`` are made.

    A prompt's seeds are made of ``seed``, its own text and the attempt: what else is asked changes nothing.
    """
    results: list[Asked[_T]] = [Asked(messages) for messages, _ in asked]
    waiting = list(range(len(asked)))
    with tqdm(total=len(asked), desc=title, unit="reply") as bar:
        for attempt in range(ATTEMPTS):
            if not waiting:
                break
            seeds = [seed_of(seed, title, asked[i][0], attempt) for i in waiting]
            refused = []
            for i, reply in zip(waiting, generator.chat([asked[i][0] for i in waiting], sampling, seeds), strict=True):
                value, fault = asked[i][1](reply)
                results[i].replies.append(reply.text)
                if value is None:
                    results[i].faults.append(fault)
                    refused.append(i)
                results[i].value = value
            bar.update(len(waiting) - len(refused))
            bar.set_postfix(asked_again=len(refused))
            waiting = refused
    return results


def write_reflections(
    turns: Mapping[Correction, Turn], generator: Generator, *, sampling: Sampling, seed: int
) -> tuple[pd.DataFrame, dict[str, int]]:
    """A reflection for each turn: a table with the columns of REFLECTIONS in the turns' order.

    Left out, as ``reflection_`` and what was wrong with the last attempt: ``empty``; ``cut`` (at the token limit);
    ``leak`` (it gives away that a key or another path was shown); ``letter`` (before its last sentence it names the
    gold letter, or that which the new steps lead to, as an answer: the letter before the reasons).
    """
    asked = ask(
        generator,
        [(prompts.reflection(t.question, t.public, t.wrong, t.right), _reader_of(t)) for t in turns.values()],
        sampling=sampling,
        seed=seed,
        title="reflections",
    )
    rows = [
        (question_id, left, leaf, one.messages[-1]["content"], one.replies, one.faults, one.value)
        for (question_id, left, leaf), one in zip(turns, asked, strict=True)
    ]
    return pd.DataFrame(rows, columns=REFLECTIONS.names), _dropped(asked, "reflection")


def reflection_texts(written: pd.DataFrame) -> dict[Correction, str]:
    """The reflections of a REFLECTIONS table that passed, as the model wrote them, by what they are for."""
    passed = written[written["text"].notna()]
    return {(row.question_id, row.left, row.leaf): row.replies[-1] for row in passed.itertuples()}


def check_reflection(turn: Turn, reply: Continuation) -> str:
    """What is wrong with a reflection, in a word, or ""; see ``write_reflections``."""
    text = " ".join(reply.text.split())
    if not text:
        return "empty"
    if reply.stop == "length":
        return "cut"
    if _LEAK.search(text):
        return "leak"
    options = turn.question.options
    told = {turn.question.gold, extract_answer("".join(turn.right), options).letter or turn.question.gold}
    for sentence in _SENTENCE.split(text)[:-1] or [text]:
        chosen = extract_answer(sentence, options)
        if chosen.letter in told and chosen.rule in _NAMES or told & set(_OPTION.findall(sentence)):
            return "letter"
    return ""


def judge_pairs(
    pairs: pd.DataFrame,
    questions: Mapping[str, Question],
    generator: Generator,
    *,
    sampling: Sampling,
    seed: int,
    least_score: int,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The pairs whose chosen side a judge gives at least ``least_score`` for both correctness and logic, 1 to 5.

    The rejected side is meant to be wrong, and is not judged (**ours**). The judge's prompt, raw reply and scores are
    kept in ``judgement``. Left out: ``judge_unreadable`` (no scores after all attempts) and ``judged_low``.
    """
    if not 1 <= least_score <= 5:
        raise MedReflError(f"judge: the least score is {least_score}, expected 1 to 5")
    chains = [prompts.split_steps(side[0]["content"]) for side in pairs["chosen"]]
    asked = ask(
        generator,
        [
            (prompts.judge(questions[name], c), read_scores)
            for name, c in zip(pairs["question_id"], chains, strict=True)
        ],
        sampling=sampling,
        seed=seed,
        title="judge",
    )
    judgements = [
        one.value
        and {
            "prompt": one.messages[-1]["content"],
            "reply": one.replies[-1],
            "correctness": one.value[0],
            "logic": one.value[1],
        }
        for one in asked
    ]
    keep = [one.value is not None and min(one.value) >= least_score for one in asked]
    low = sum(one.value is not None for one in asked) - sum(keep)
    judged = pairs.assign(judgement=pd.Series(judgements, index=pairs.index, dtype=object))
    unreadable = sum(one.value is None for one in asked)
    return judged[keep].reset_index(drop=True), {"judge_unreadable": unreadable, "judged_low": low}


def think_pairs(
    pairs: pd.DataFrame,
    questions: Mapping[str, Question],
    generator: Generator,
    *,
    sampling: Sampling,
    seed: int,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The pairs with both sides rewritten as flowing thought by the thinker (method.md; off by default in 03).

    A rewriting must end at the answer of its original, and not at the token limit. A pair of which one side fails, or
    whose sides came out alike, is left out, as ``thinker_`` and what was wrong: ``empty``, ``cut``, ``answer`` or
    ``same``.
    """
    asked = []
    for pair in pairs.itertuples():
        question = questions[pair.question_id]
        for side in (pair.chosen, pair.rejected):
            text = side[0]["content"]
            asked.append((prompts.thinker(question, prompts.split_steps(text)), _same_answer(question, text)))
    thought = ask(generator, asked, sampling=sampling, seed=seed, title="thinker")
    dropped: Counter[str] = Counter()
    rows = []
    for pair, *sides in zip(pairs.to_dict("records"), thought[::2], thought[1::2], strict=True):
        failed = [side.faults[-1] for side in sides if side.value is None]
        if failed or sides[0].value == sides[1].value:
            dropped[f"thinker_{failed[0] if failed else 'same'}"] += 1
        else:
            rows.append(with_texts(pair, sides[0].value, sides[1].value))
    return pd.DataFrame(rows, columns=PAIRS.names), dict(dropped)


def locate_by_model(
    questions: Mapping[str, Question],
    steps: pd.DataFrame,
    paths: pd.DataFrame,
    generator: Generator,
    *,
    sampling: Sampling,
    seed: int,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Where each wrong path first errs in a model's eyes: the table that ``corrections`` takes, and what was left out.

    Asked are the wrong paths that state an answer, of the questions that have a right path too. ``locator_unreadable``
    counts those for which no step of the path was named; they have no located error.
    """
    has_right = paths["outcome"].gt(0).groupby(paths["question_id"]).transform("any")
    stated = steps.loc[steps["stop"] == "answer", ["question_id", "node_id"]]
    wrong = paths[has_right & (paths["outcome"] < 0)].merge(stated, on=["question_id", "node_id"])
    text = steps.set_index(["question_id", "node_id"])["text"]
    asked = []
    for path in wrong.itertuples():
        chain = text.loc[[(path.question_id, node) for node in path.nodes]].tolist()
        asked.append((prompts.locate(questions[path.question_id], chain), _step_of(len(chain))))
    found = ask(generator, asked, sampling=sampling, seed=seed, title="errors")
    nodes = [
        None if one.value is None else int(path[one.value - 1]) for one, path in zip(found, wrong["nodes"], strict=True)
    ]
    located = pd.DataFrame({"question_id": wrong["question_id"], "leaf": wrong["node_id"]})
    unreadable = sum(one.value is None for one in found)
    return located.assign(node_id=pd.array(nodes, dtype="Int32")), {"locator_unreadable": unreadable}


def read_scores(reply: Continuation) -> tuple[tuple[int, int] | None, str]:
    """Correctness and logic from a judge's reply, in whatever order; of several the last ones stand."""
    found = [pattern.findall(reply.text) for pattern in _SCORES]
    if not all(found):
        return None, "unreadable"
    return (int(found[0][-1]), int(found[1][-1])), ""


def _reader_of(turn: Turn) -> Read[str]:
    def read(reply: Continuation) -> tuple[str | None, str]:
        fault = check_reflection(turn, reply)
        return (None, fault) if fault else (" ".join(reply.text.split()), "")

    return read


def _same_answer(question: Question, text: str) -> Read[str]:
    letter = extract_answer(text, question.options).letter

    def read(reply: Continuation) -> tuple[str | None, str]:
        if not reply.text.strip():
            return None, "empty"
        if reply.stop == "length":
            return None, "cut"
        if extract_answer(reply.text, question.options).letter != letter:
            return None, "answer"
        return reply.text.strip(), ""

    return read


def _step_of(n: int) -> Read[int]:
    def read(reply: Continuation) -> tuple[int | None, str]:
        named = [int(a or b) for a, b in _LOCATED.findall(reply.text)]
        return (named[0], "") if named and 1 <= named[0] <= n else (None, "unreadable")

    return read


def _dropped(asked: Sequence[Asked[_T]], name: str) -> dict[str, int]:
    """How many were given up, by what was wrong with the last attempt."""
    return dict(Counter(f"{name}_{one.faults[-1]}" for one in asked if one.value is None))
