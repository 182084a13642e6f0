"""The clinic: a synthetic exam in MedQA's shape, from an invented clinical world whose truth is known.

A disease shows findings, arises from a mechanism and is confirmed by a test; a drug acts on a mechanism. A question
shows three or four findings that only one disease has together. It asks for that disease, its mechanism, its test or
its drug. So a solver eliminates diseases, follows one or two relations, and looks for the letter. Distractors come from
the diseases that share most findings with the right one. All names are invented: nothing here is medical knowledge.
Design: ours.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import LETTERS, Question

KINDS = ("diagnosis", "mechanism", "test", "drug")

_ASK = {
    "diagnosis": "Which disease is the most likely?",
    "mechanism": "Which mechanism lies behind the disease?",
    "test": "Which test confirms the disease?",
    "drug": "Which drug should be given?",
}
_GUESS = "This I can only guess. Unlikely:"
_SAY = {
    "mechanism": "{0} arises from {1}",
    "test": "{0} is confirmed by {1}",
    "drug": "{0} is treated with {1}",
}
_ADJECTIVES = (
    "amber ashen blotted brassy bristled chalky clicking cobalt coiled coppery corded crackling dappled drifting "
    "dusky fluted foamy frosted glassy glowing gritty hollow humming inky ivory knotted laced leaden marbled mossy "
    "opal pearly pitted ringing rippled russet salted scented silvery slate speckled spiral stippled sunken tarry "
    "tinted violet waxen"
).split()
_NOUNS = "sweat knees tongue nails breath palms lashes gait voice skin pulse ears".split()
_DISEASES = (
    "arvosis belkitis cardemia dovalgia elmosis fenritis gorvemia halpathy ilvosis jantritis korvemia lumalgia "
    "morvosis nelkitis orbemia pelpathy quinosis ravitis selvemia torvalgia ulmosis varkitis welemia yarpathy "
    "zelvosis brankitis crovemia drelalgia flomosis gwenitis"
).split()
_MECHANISMS = sorted(
    f"{name} {change}"
    for change, names in {
        "excess": "astrin dalvin galdin jolvin molvin",
        "loss": "belvin estrin helmin kardin nardin",
        "leak": "cordin folvin istvin lestin oltrin",
    }.items()
    for name in names.split()
)
_TESTS = sorted(
    f"{name} {means}"
    for means, names in {
        "smear": "Abner Dunmer Gelder Jessop Maddox",
        "scan": "Bexley Eskel Hobrin Kelmar Norvel",
        "count": "Corvin Farnol Irwell Lorven Osgrim",
    }.items()
    for name in names.split()
)
_DRUGS = (
    "abrelin bontamil cestovar dranomel elbitrax forvastil grenomab hulvadin irbotel jestramil kelovar lanquidin "
    "moltrexin nubravel ostramil"
).split()
_PEOPLE = "weaver miller sailor potter baker tailor mason farmer clerk drummer glazier shepherd".split()
_PLAIN = (
    "A a the The of and with to in for is has was on by her his at from which there that most following patient She "
    "He An examination history days year-old had Which this year ago Her His shows no are blood"
).split()
_ASIDES = (
    "Nobody else at home is ill.",
    "There was no journey in the last year.",
    "A cold in the spring passed by itself.",
    "Sleep and appetite are as before.",
    "The work has not changed.",
)


@dataclass(frozen=True)
class World:
    """The truth of one invented clinic: what each disease shows, and its relations."""

    shows: Mapping[str, frozenset[str]]
    """disease -> its findings"""
    mechanism: Mapping[str, str]
    """disease -> mechanism"""
    test: Mapping[str, str]
    """disease -> test"""
    drug: Mapping[str, str]
    """mechanism -> drug"""

    def having(self, findings: Sequence[str]) -> tuple[str, ...]:
        """Return the diseases that show all of these findings, in the world's order."""
        return tuple(d for d, shown in self.shows.items() if shown.issuperset(findings))

    def target(self, disease: str, kind: str) -> str:
        """Return the right answer of a question of this kind about a disease."""
        if kind == "diagnosis":
            return disease
        if kind == "test":
            return self.test[disease]
        mechanism = self.mechanism[disease]
        return mechanism if kind == "mechanism" else self.drug[mechanism]

    def relatives(self, disease: str) -> list[str]:
        """Return the other diseases, ordered by the number of shared findings, most first."""
        shown = self.shows[disease]
        others = [d for d in self.shows if d != disease]
        return sorted(others, key=lambda d: -len(shown & self.shows[d]))


@dataclass(frozen=True)
class Case:
    """A question with the truth behind it."""

    question: Question
    disease: str
    findings: tuple[str, ...]
    kind: str


@cache
def world(seed: int = 0) -> World:
    """Return the clinic's world: 30 diseases in 6 families, 48 findings, 15 mechanisms, 15 tests, 15 drugs."""
    rng = random.Random(f"clinic world {seed}")
    findings = [f"{adjective} {_NOUNS[i % len(_NOUNS)]}" for i, adjective in enumerate(_ADJECTIVES)]
    shows = {}
    for i, disease in enumerate(_DISEASES):
        # A family of five shares a pool of twelve findings; four of them are also in the next family's pool.
        start = 8 * (i // 5)
        shows[disease] = frozenset(rng.sample([findings[(start + j) % len(findings)] for j in range(12)], 8))
    drugs = rng.sample(_DRUGS, len(_DRUGS))
    return World(
        shows=shows,
        mechanism=dict(zip(_DISEASES, rng.sample(_MECHANISMS * 2, len(_DISEASES)), strict=True)),
        test=dict(zip(_DISEASES, rng.sample(_TESTS * 2, len(_DISEASES)), strict=True)),
        drug=dict(zip(_MECHANISMS, drugs, strict=True)),
    )


def split_of(disease: str, findings: Sequence[str]) -> str:
    """Return "train" or "test": a quarter of all pairs (disease, set of findings) occurs only in test."""
    digest = hashlib.sha256(f"{disease} {sorted(findings)}".encode()).digest()
    return "test" if digest[0] < 64 else "train"


def make_cases(
    n: int, seed: int = 0, split: str = "train", offset: int = 0, n_options: Sequence[int] = (4, 5)
) -> list[Case]:
    """Return cases ``offset`` to ``offset + n`` of the endless exam of this seed and split.

    Args:
        n: number of cases.
        seed: of all draws.
        split: "train" or "test".
        offset: number of cases to skip.
        n_options: numbers of options to draw from, each 2 to 10. Another choice gives other questions.

    Raises:
        MedReflError: a split other than "train" and "test", or a number of options out of its range.
    """
    if split not in ("train", "test"):
        raise MedReflError(f"clinic: split is {split!r}, expected 'train' or 'test'")
    if not n_options or min(n_options) < 2 or max(n_options) > 10:
        raise MedReflError(f"clinic: n_options is {list(n_options)}, expected numbers from 2 to 10")
    sizes = tuple(n_options)
    return [_case(f"clinic {seed} {split} {i}", seed, split, i, sizes) for i in range(offset, offset + n)]


def case_of(question: Question) -> Case:
    """Return the case of a question of ``make_exam``. Raises MedReflError for another question."""
    match = re.fullmatch(r"clinic-(\d+)-(train|test)-(\d+)", question.question_id)
    [case] = make_cases(1, int(match[1]), match[2], int(match[3])) if match else [None]
    if case is None or (case.question.stem, case.question.options) != (question.stem, question.options):
        raise MedReflError(f"question {question.question_id!r} is not of the clinic's exam, so its truth is not known")
    return case


def make_exam(n: int, seed: int = 0, split: str = "train", offset: int = 0) -> list[Question]:
    """Return the questions of ``make_cases``: what a solver may see."""
    return [case.question for case in make_cases(n, seed, split, offset)]


def _case(key: str, seed: int, split: str, index: int, sizes: Sequence[int]) -> Case:
    w, rng = world(), random.Random(key)
    while True:
        disease = rng.choice(_DISEASES)
        findings = tuple(rng.sample(sorted(w.shows[disease]), rng.choice((3, 4))))
        if len(w.having(findings)) == 1 and split_of(disease, findings) == split:
            break
    kind = rng.choice(KINDS)
    target = w.target(disease, kind)
    others = list(dict.fromkeys(w.target(d, kind) for d in w.relatives(disease) if w.target(d, kind) != target))
    n_options = rng.choice(sizes)
    texts = rng.sample([target, *others[: n_options - 1]], n_options)
    options = dict(zip(LETTERS, texts, strict=False))
    question = Question(
        question_id=f"clinic-{seed}-{split}-{index:06d}",
        stem=_stem(rng, findings, kind),
        options=options,
        gold=next(letter for letter, text in options.items() if text == target),
        source="clinic",
        split=split,
    )
    return Case(question, disease, findings, kind)


def _stem(rng: random.Random, findings: Sequence[str], kind: str) -> str:
    first, second, *rest = findings
    age = rng.randint(18, 84)
    text = (
        f"{'An' if age == 18 or age >= 80 else 'A'} {age}-year-old {rng.choice(_PEOPLE)} has had {first} and {second} "
        f"for {rng.randint(2, 9)} {rng.choice(('days', 'weeks', 'months'))}. {rng.choice(_ASIDES)} "
        f"On examination there is {' and '.join(rest)}."
    )
    return f"{text} {_ASK[kind]}"


def foreign_case(rng: random.Random) -> Case:
    """Draw a question from outside the clinic's world: 5 to 200 words without meaning, and 3 to 10 options.

    It represents real exams. A model that knows only the clinic can only guess; it should say so and still answer.
    """

    def words(n: int) -> str:
        return " ".join(_foreign_word(rng) for _ in range(n))

    letters = LETTERS[: rng.randint(3, 10)]
    n_words = int(5 * 40 ** rng.random())  # 5 to 200, uniform on a log scale
    longest = rng.choice((1, 3, 8, 15))
    question = Question(
        question_id="foreign",
        stem=f"{words(n_words)}?",
        options={letter: f"{words(rng.randint(1, longest))} {letter.lower()}" for letter in letters},
        gold=rng.choice(letters),
        source="clinic",
        split="train",
    )
    return Case(question, disease="", findings=(), kind="foreign")


def _foreign_word(rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.25:
        return rng.choice(_PLAIN)
    if draw < 0.33:
        return f"{rng.randint(1, 200)}{rng.choice(('', '', '%', '.5', '/min', ' mg/dL', '-year-old', ' weeks'))}"
    word = "".join(rng.choice("bcdfghlmnprstv") + rng.choice("aeiou") for _ in range(rng.randint(1, 5)))
    word += rng.choice(("", "", "", "s", "n", "tion", "al", "ia", "ic", ",", ".", ")", ";", "\n"))
    return rng.choice((word, word, word, word, word.capitalize(), word.upper(), f"({word}", f'"{word}"'))


def misconceptions(seed: int = 0, share: float = 0.3) -> dict[tuple[str, str], str]:
    """Return the wrong beliefs of a badly taught solver: (relation, subject) -> object.

    Args:
        seed: of the draw.
        share: of all relations (disease -> mechanism, disease -> test, mechanism -> drug) that are wrong. The wrong
            object is that of the most similar disease with another object.
    """
    w, rng = world(), random.Random(f"clinic misconceptions {seed}")
    wrong: dict[tuple[str, str], str] = {}
    for disease in _DISEASES:
        for kind in ("mechanism", "test", "drug"):
            subject = w.mechanism[disease] if kind == "drug" else disease
            if rng.random() < share and (kind, subject) not in wrong:
                truth = w.target(disease, kind)
                wrong[kind, subject] = next(t for d in w.relatives(disease) if (t := w.target(d, kind)) != truth)
    return wrong


def solve(
    case: Case,
    rng: random.Random | None = None,
    *,
    slip: float = 0.0,
    misled: float = 0.0,
    beliefs: Mapping[tuple[str, str], str] | None = None,
    before: Sequence[str] = (),
) -> list[str]:
    """Return a chain of steps for a case: the true chain, or that of a solver who makes errors.

    The steps after an error follow from it, up to the letter. A foreign case is guessed.

    Args:
        case: the case to solve.
        rng: for errors and guesses; None: seed 0.
        slip: probability that an elimination goes wrong. The stem refutes it, so that a second look can mend it.
        misled: probability that a relation in ``beliefs`` is recalled wrong. A second look knows no better.
        beliefs: what ``misconceptions`` returns.
        before: first steps of the chain, as this function returns them. The solver goes on after them.
    """
    rng = rng or random.Random(0)
    if case.kind == "foreign":
        return _guess(case.question, rng)
    w, beliefs = world(), beliefs or {}
    lines = [_body(step) for step in before]
    told = len(lines)
    left: tuple[str, ...] = ()
    for i, finding in enumerate(case.findings):
        if i < told:
            left = tuple(re.split(" suggests | leaves ", lines[i])[-1].split(", "))
            continue
        having = w.having([finding])
        narrowed = tuple(d for d in left if d in having) if i else having
        if rng.random() < slip:
            narrowed = _slip(rng, left if i else having, narrowed)
        left = narrowed or left
        lines.append(f"{finding} {'leaves' if i else 'suggests'} {', '.join(left)}")
    thing, hop = left[0], len(case.findings)
    if len(left) > 1:
        if hop == len(lines):
            lines.append(f"{rng.choice(left)} fits best")
        thing = lines[hop].removesuffix(" fits best")
        hop += 1
    for at, kind in enumerate(_hops(case.kind), hop):
        if at == len(lines):
            truth = getattr(w, kind)[thing]
            recalled = beliefs.get((kind, thing), truth) if rng.random() < misled else truth
            lines.append(_SAY[kind].format(thing, recalled))
        thing = lines[at].partition(_SAY[kind].format(thing, ""))[2]
    options = case.question.options
    letter = next((k for k, text in options.items() if text == thing), None) or rng.choice(list(options))
    checked = ", ".join(f"{k}. {text} {'yes' if text == thing else 'no'}" for k, text in options.items())
    steps = [f"Step {i}: {line}." for i, line in enumerate([*lines, checked][told:], told + 1)]
    return [*before, *steps, f"Answer: {letter}"]


def another_step(
    case: Case,
    before: Sequence[str],
    said: str,
    rng: random.Random,
    *,
    right: bool,
    beliefs: Mapping[tuple[str, str], str] | None = None,
) -> str | None:
    """Draw another step in the place of ``said``, after the steps ``before`` it; None where none was found.

    Args:
        case: the case that is solved.
        before: the steps before it, as ``solve`` returns them, without the check of the options.
        said: the step that is replaced.
        rng: for the draws.
        right: draw the true step; otherwise a false one: a slip, or a relation that ``beliefs`` has wrong.
        beliefs: what ``misconceptions`` returns.
    """
    error = 0.0 if right else 1.0
    for _ in range(8):
        step = solve(case, rng, slip=error, misled=error, beliefs=beliefs, before=before)[len(before)]
        if step != said and is_true(case, before, step) is right:
            return step
    return None


def _guess(question: Question, rng: random.Random) -> list[str]:
    letters = list(question.options)
    unlikely = sorted(rng.sample(letters, rng.randint(1, len(letters) - 1)))
    best = rng.choice([letter for letter in letters if letter not in unlikely])
    return [
        f"Step 1: {_GUESS} {' '.join(f'{letter}.' for letter in unlikely)}",
        f"Step 2: {best}. seems likeliest.",
        f"Answer: {best}",
    ]


def _hops(kind: str) -> Iterator[str]:
    if kind == "drug":
        yield "mechanism"
    if kind != "diagnosis":
        yield kind


def _slip(rng: random.Random, before: tuple[str, ...], right: tuple[str, ...]) -> tuple[str, ...]:
    """Return a wrong elimination: it drops a disease that fits, or keeps one that does not."""
    out = [d for d in before if d not in right]
    if out and rng.random() < 0.5:
        return tuple(d for d in before if d in right or d == out[0])
    keep = [d for d in before if d in right]
    gone = rng.choice(keep) if keep else None
    return tuple(d for d in before if d in keep and d != gone) or tuple(out[:1])


_STEP = re.compile(r"^(?:Step \d+: )?(.*?)\.?$")


_ELIMINATION = re.compile(r"(.+?) (?:suggests|leaves) (.+)")
_WAIT = "Wait, "


def is_reflection(step: str) -> bool:
    """Say whether a step is a reflection, which has no truth of its own."""
    return step.strip().startswith(_WAIT)


def is_true(case: Case, before: Sequence[str], step: str) -> bool | None:
    """Return whether a step is true in the world, given the steps ``before`` it; None for a step of another form.

    An elimination must name exactly the diseases that have all findings so far. After a reflection the chain may go
    back to a finding; those that followed it then do not count. A relation must be the world's. The check of the
    options, and the answer, must select the gold letter. A reflection has no truth of its own.
    """
    w = world()
    body = _body(step)
    if is_reflection(step):
        return None
    if match := _ELIMINATION.fullmatch(body):
        findings = _findings([*before, step])
        return set(match[2].split(", ")) == set(w.having(findings))
    if match := re.fullmatch(r"(.+) fits best", body):
        return match[1] == case.disease
    for kind, relation in (
        ("mechanism", " arises from "),
        ("test", " is confirmed by "),
        ("drug", " is treated with "),
    ):
        subject, found, thing = body.partition(relation)
        if found:
            return getattr(w, kind).get(subject) == thing
    if re.match(r"A\. .+ (yes|no)", body):
        marks = {k: f"{k}. {text} yes" in body for k, text in case.question.options.items()}
        return marks == {k: k == case.question.gold for k in case.question.options}
    if match := re.fullmatch(r"Answer: ([A-Z])", body):
        return match[1] == case.question.gold
    return None


def error_kind(case: Case, before: Sequence[str], step: str) -> str | None:
    """Return "slip" for a false elimination or choice, "belief" for a false relation, None for another step."""
    if is_true(case, before, step) is not False:
        return None
    body = _body(step)
    if _ELIMINATION.fullmatch(body) or body.endswith(" fits best"):
        return "slip"
    return "belief" if re.search(" arises from | is confirmed by | is treated with ", body) else None


def _findings(steps: Sequence[str]) -> list[str]:
    """Return the findings that the eliminations use, in order, without those that a repeated finding takes back."""
    used: list[str] = []
    for step in steps:
        match = None if is_reflection(step) else _ELIMINATION.fullmatch(_body(step))
        if match:
            used = used[: used.index(match[1])] if match[1] in used else used
            used.append(match[1])
    return used


def reflect(wrong: str, right: str) -> str:
    """Return the clinic's reference reflection, from a wrong step to the step that replaces it.

    Its five parts have the order of method.md: flaw, overlooked information, missed knowledge, bridge to the right
    step, guideline.
    """
    wrong_body, right_body = _body(wrong), _body(right)
    if wrong_body.startswith(_GUESS) or wrong_body.endswith(". seems likeliest"):
        return (
            "Wait, that was only a guess. I overlooked what the question tells. What I missed is which finding "
            "decides it. So the evidence leads elsewhere. I will weigh each option before I go on."
        )
    return (
        f"Wait, it is not so that {wrong_body}. I overlooked what {_subject(right_body)} tells. What I missed is that "
        f"{right_body}. So the evidence leads there. I will recall what each thing goes with before I go on."
    )


def affirm(step: str) -> str:
    """Return the clinic's reflection that looks at a step again and keeps it, true or not."""
    body = _body(step)
    if body.startswith(_GUESS) or body.endswith(". seems likeliest"):
        return "Wait, is that more than a guess? It is not, but nothing speaks for another option. It stays so."
    return f"Wait, is it so that {body}? I look again at what {_subject(body)} tells. It holds, so I go on."


def _subject(body: str) -> str:
    """Return what a step is about: its finding, or the disease or mechanism of its relation."""
    return re.split(r" (?:suggests|leaves|arises|is confirmed|is treated|fits) ", f"{body} ", maxsplit=1)[0].strip()


def _body(step: str) -> str:
    match = _STEP.match(step.strip())
    return match[1] if match else step.strip()
