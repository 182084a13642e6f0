"""Find where a response retracts its answer: "wait, that's wrong", "scratch that", "me equivoqué"."""

from __future__ import annotations

import re

from medrefl_utils.exam.answers.languages import Rules
from medrefl_utils.exam.answers.text import holds

_RETRACTION_WORDS = tuple(
    (
        "wait|change|switch|mistake|error|wrong|no,|no.|no:|no;|nope|actually|correct|scratch|rather,|mean|"
        "reconsider|rethink|"
        "edit|update|or rather|overlooked|forgot|revised|take|mis|second|second thought|reflection|no longer|"
        "sorry|oops|hold on|"
        "not right|"
        "cannot be|can't be"
    ).split("|")
)
_DOUBTS = (
    "wait",
    "on reflection",
    "no, ",
    "actually",
    "mistake",
    "wrong",
    "second thought",
    "correction",
    "oops",
    "no. ",
)
_TAKES_BACK = re.compile(
    r"(?:(?:\A|[.!?…,\n—–-]\s{0,2}|\bhmm+[,.]?\s|\bwait[,.!]?\s|\bno[,.!]\s|\bactually[,.]?\s|\boh[,.]?\s|\bbut\s)"
    r"(?:i(?:'ve| have)? (?:just )?(?:made|make) (?:an?|another|one) (?:\w+ )?(?:mistake|error)|i (?:was|"
    r"am) (?:wrong|mistaken)|i'm wrong|"
    r"my mistake|scratch that|i(?:'m| am) (?:no longer|not) sure|i meant|i mean\b|correction\b|sorry\b|oops\b|"
    r"strike that)|"
    r"\b(?:my|the) (?:(?:final|initial|first|previous|above|stated) )?(?:answer|"
    r"choice),? (?:of )?[(\"']?[a-z][)\"']?,? (?:is|was) "
    r"(?:wrong|incorrect|not right|not correct)\b|"
    r"\n\W{0,4}(?:edit|update|revised(?: answer)?|corrected(?: answer)?)\W{0,3}:|\bi take (?:that|it) back\b|"
    r"\bi (?:just )?(?:overlooked|forgot|misread|misunderstood|misinterpreted|misjudged)\b|"
    r"\A[\s.…!,\"'*)—–-]{0,6}(?:wrong|incorrect)[.!,]|"
    r"\b(?:or rather|i meant to say|no longer sure)\b|"
    r"\(\s?(?:edit|correction|corrected|revised)\s?:|"
    r",\s(?:i mean|i meant|no,|sorry,|correction[,:]|rather|make that)\s|"
    r"(?:\A|[.!?…,\n—–-])\s{0,2}(?:wait|hmm+|hold on|oh)[,.!…\s—–-]{1,4}no[.!…\s]{0,4}\Z|"
    r"(?:\A[\s.…!,\"'*)—–-]{0,6}|\bhmm+[,.]?\s|\bwait[,.!]?\s|\bno[,.!]\s|\bactually[,.]?\s|\boh[,.]?\s|\bbut\s)"
    r"(?:(?:that|this|it|(?:this|that|my|the above) answer)(?:'s| is| was| seems)(?: clearly)? (?:wrong|incorrect|"
    r"not right|not correct|a mistake(?! to)|an error(?! to))|"
    r"(?:that|this|it) (?:isn't|wasn't) (?:right|correct)|(?:that|this|it) (?:cannot|can't|can not) be(?: right|"
    r" correct| so|(?=[.,;!—])|\Z)))"
)
_PAUSES = re.compile(
    r"(?:\A|[.!?…,;:\n—–(>-]\s{0,2}|\bhmm+[,.]?\s|,\sbut\s(?=on ))[\"'*]{0,2}(?:wait\b|actually\b|hold on|"
    r"on (?:second thought|reflection|reconsideration)|let me (?:reconsider|re-?think|re-?check|correct|re-?examine|"
    r"re-?evaluate)|"
    r"no[,.;:!—–]|no wait|nope\b|rather,|i (?:now |would now )?(?:change|switch)\b)"
)


def _around(low: str, words: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return the spans of a text around its words, joined where they overlap."""
    places: list[int] = []
    for word in words:
        at = low.rfind(word)
        while at >= 0:
            places.append(at)
            at = low.rfind(word, 0, at)
    stretches: list[tuple[int, int]] = []
    for at in sorted(places):
        if stretches and at - 40 <= stretches[-1][1]:
            stretches[-1] = (stretches[-1][0], at + 60)
        else:
            stretches.append((max(0, at - 40), at + 60))
    return stretches


def find_retraction(low: str, languages: list[Rules]) -> tuple[int, bool]:
    """Return where the last retraction begins, -1 without one, and whether it certainly retracts the answer."""
    at, strong = -1, False
    if len(low) > 3:
        for begin, end in _around(low, _RETRACTION_WORDS):
            for mark in _PAUSES.finditer(low, begin, end):
                at = max(at, mark.start())
            for mark in _TAKES_BACK.finditer(low, begin, end):
                at, strong = max(at, mark.start()), True
    for rules in languages:
        for mark in rules.retraction.finditer(low):
            if mark.start() >= at:
                at, strong = mark.start(), True
    return at, strong


def doubts(low: str) -> bool:
    """Say whether a text holds a word that retractions often have: a fast test before ``find_retraction``."""
    return holds(low, _DOUBTS)
