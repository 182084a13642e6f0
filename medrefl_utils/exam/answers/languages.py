"""Find explicit statements in other languages than English, with one set of rules and a row of words per language.

A statement is a word for "answer", words between, and an option ("La respuesta correcta es C"). A negation before or
after the option makes it denied. A condition, or an opinion of others, makes it supposed.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from medrefl_utils.exam.answers.opinions import contrast_end, is_foreign_opinion
from medrefl_utils.exam.answers.options import Options
from medrefl_utils.exam.answers.statements import ASKED, ASSERTED, DENIED, SUPPOSED, UNREADABLE, Statement, prose
from medrefl_utils.exam.answers.text import clause_begin, holds, sentence_end
from medrefl_utils.exam.answers.words import LANGUAGES, Language

_SPACED = frozenset(("es", "fr", "de", "pt", "it", "ru", "vi", "tr", "ar", "hi"))
_NOT_BEHIND = frozenset(("ko", "ja", "hi", "tr", "th"))
_PUNCTUATION = r"[\s\"'“”‘’`*_(\[\]){:=>«»–—「」『』【】<|→,-]"


@dataclass(frozen=True)
class Rules:
    """The patterns of one language: ``cue`` introduces an answer, ``between`` may precede its value."""

    language: Language
    spaced: bool
    cue: re.Pattern[str]
    between: re.Pattern[str]
    negation: re.Pattern[str]
    behind: re.Pattern[str]
    but: re.Pattern[str]
    condition: re.Pattern[str]
    mood: re.Pattern[str] | None
    denied_head: re.Pattern[str]
    retraction: re.Pattern[str]
    joins: re.Pattern[str]
    verdict: re.Pattern[str]
    chooses: re.Pattern[str]


@lru_cache(maxsize=32)
def rules_of(language: Language) -> Rules:
    """Return the patterns of a language's row, compiled on first use."""
    spaced = language.code in _SPACED
    begin, end = (r"(?<![^\W_])", r"(?![^\W_])") if spaced else ("", "")
    if language.code == "hi":  # Python counts vowel signs as no part of a word
        begin, end = rf"{begin}(?<![\u0900-\u0963])", rf"{end}(?![\u0900-\u0963])"

    def word(alternatives: str) -> str:
        return rf"{begin}(?:{alternatives}){end}"

    row = language
    apart = r"[\s\"'*]{0,3}"
    negation = word(row.negation).replace("n'" + end, "n'") if row.code == "fr" else word(row.negation)
    if row.code == "fr":
        negation = rf"(?:(?<!\w)n'|{word('ne|pas|jamais|aucun|ni')})"
    joins = word(row.joins) if row.code not in ("fr", "it") else rf"(?:(?<!\w)l'|{word(row.joins)})"
    behind = rf"[\s\"'*).,]{{0,4}}(?:{word(row.joins)}|{word(row.option)}){{0,2}}\s?{word(row.negation)}"
    if row.code in ("ko", "ja"):
        behind = rf"[\s\"'*)]{{0,4}}(?:은|는|이|가|で|は|では)?\s?(?:{row.negation})"
    elif row.code == "tr":
        behind = rf"[\s\"'*)]{{0,4}}(?:{row.option})?\s?(?:değil|olamaz)"
    elif row.code == "hi":
        behind = r"[\s\"'*)]{0,4}(?:नहीं)"
    verdict = (
        rf"(?:{_PUNCTUATION}|[.、，。]|{joins}|{word(row.option)}|'d[ıi]r){{0,8}}?(?P<no>{negation})?(?:{_PUNCTUATION}|"
        rf"{joins}){{0,3}}?"
        rf"(?:(?P<wrong>{word(row.wrong)})|(?P<right>{word(row.right)}|{word(row.choose)}|✅|✓|✔)|(?P<cross>❌|✗|✘))"
    )
    right, option, between = word(row.right), word(row.option), rf"{_PUNCTUATION}|{joins}"
    cues = (
        _CONTRAST.get(row.code, r"(?!)"),
        rf"{right}(?=\s(?:es|est|ist|é|è|—)\s)",
        word(row.choose),
        word(row.answer),
        rf"{option}{apart}{right}",
        rf"{right}{apart}{option}",
    )
    return Rules(
        language=row,
        spaced=spaced,
        cue=re.compile("|".join(cues)),
        between=re.compile(rf"(?:{_PUNCTUATION}|{negation}|{joins}|{right}|{option}){{0,14}}+"),
        negation=re.compile(negation),
        behind=re.compile(behind),
        but=re.compile(
            rf"[\s,、，;)\"'*]{{0,4}}(?:{word(row.negation)})?[\s,、，;]{{0,3}}(?:{word(row.but)})?"
            rf"(?:{between}|{option}){{0,6}}+"
        ),
        condition=re.compile(word(row.condition)),
        mood=re.compile(_MOODS[row.code]) if row.code in _MOODS else None,
        denied_head=re.compile(rf"(?:{negation}|不|别|別|比)\W?\Z"),
        retraction=re.compile(rf"(?:\A|(?<=[\s.,;:!?。,、…—।]))(?:{row.retraction})"),
        joins=re.compile(rf"(?:{joins}|:|c'est)(?:{between}|{option}){{0,6}}+"),
        verdict=re.compile(verdict),
        chooses=re.compile(rf"{right}|{word(row.answer)}|{word(row.choose)}"),
    )


# Words that begin the second half of "not A but C", where they have no other use.
# Then "it is" before an option, whose letter is masked.
_CONTRAST = {
    "zh": "而(?:应该|应当|应|可能|更可能|很可能)?是|"
    "最(?:可能|有可能|合适|恰当|适合|佳|符合题意)的(?:诊断|选项)?(?:是|为)",
    "es": r"\bsino\b|\bes (?:la )?(?=\0)",
    "fr": r"\bc'est (?:la |l'option |la réponse )?(?=\0)",
    "de": r"\bsondern\b|\bes ist (?=\0)",
    "it": r"\bbensì\b|\bè (?:la )?(?=\0)",
    "pt": r"\bmas sim\b|\bé (?:a )?(?=\0)",
    "vi": "mà là",
}
_MOODS = {
    "es": r"\bsi\b.{0,150}\b(?:sería|habría|elegiría)|supongamos|suponiendo",
    "fr": r"\bs[i'].{0,150}\b(?:serait|aurait|choisirais)|supposons",
    "de": r"(?:\bwenn\b|\bfalls\b|\bwäre\b|\bhätte\b).{0,150}\b(?:wäre|würde|hätte)\b|angenommen",
    "pt": r"\b(?:se|caso)\b.{0,150}\b(?:seria|teria|escolheria)|supond|suponha",
    "it": r"\b(?:se|qualora)\b.{0,150}\b(?:sarebbe|sceglierei)|supponiamo",
    "tr": r"\b(?:eğer|olsaydı|olurdu|varsayalım)\b",
}


_NOR = re.compile(r"[\s\"'*),]{0,4}(?:\b(?:ni|né|nem|noch|ни|ne|nor)\s|也不是|也非|،?\s?ولا\s)(?:la |l'|a |ist )?")


def is_hypothetical(low: str, begin: int, at: int, rules: Rules) -> bool:
    """Say whether a sentence is hypothetical. A language with a mood for it needs more than the conjunction."""
    if rules.mood:
        return rules.mood.search(low[begin : sentence_end(low, at)]) is not None
    if rules.condition.search(low, begin, at) is None:
        return False
    return rules.condition.search(low, contrast_end(low, begin, at), at) is not None


_PROBES = [
    (probe, row)
    for row in LANGUAGES
    for probe in (*row.probe, *(word for word in row.choose.split("|") if re.escape(word).replace("\\ ", " ") == word))
]
_LATIN_PROBES = [(probe, row) for probe, row in _PROBES if max(probe) < "\u0250"]


def _signs(probes: tuple[str, ...]) -> tuple[str, ...]:
    """Return characters of which each probe has one. To look for a character is much faster than to look for a word."""
    signs: list[str] = []
    while probes:
        counts = Counter(sign for probe in probes for sign in set(probe) if sign >= "\u0250")
        signs.append(counts.most_common(1)[0][0])
        probes = tuple(probe for probe in probes if signs[-1] not in probe)
    return tuple(signs)


_OTHER_PROBES = {
    row: tuple(probe for probe, of in _PROBES if of is row and max(probe) >= "\u0250") for row in LANGUAGES
}
_OTHER_PROBES = {row: (_signs(probes), probes) for row, probes in _OTHER_PROBES.items() if probes}
_NOUNS = [(row.probe[0], row) for row in LANGUAGES if max(row.probe[0]) < "\u0250"]


def active(low: str) -> list[Rules]:
    """Return the rules of the languages whose words a text has. An English text may end with a label in another one."""
    if " the " in low:
        near = max(0, len(low) - 300)
        found = [row for noun, row in _NOUNS if low.find(noun, near) >= 0]
    else:
        found = [row for probe, row in _LATIN_PROBES if probe in low]
    if not low.isascii():
        for row, (signs, probes) in _OTHER_PROBES.items():
            if holds(low, signs) and holds(low, probes):
                found.append(row)
    return [rules_of(row) for row in dict.fromkeys(found)] if found else []


def foreign(text: str, low: str, languages: list[Rules], options: Options) -> list[Statement]:
    """Return the explicit statements in other languages than English, in no order."""
    found: list[Statement] = []
    signs = list(low)
    for at in options.alone_in(text):  # a capital "A" is no Portuguese article
        signs[at] = "\0"
    low = "".join(signs)
    for rules in languages:
        end = 0
        for cue in rules.cue.finditer(low):
            if cue.start() < end:
                continue
            if statement := _foreign_at(text, low, cue, rules, options):
                found.append(statement)
                end = statement.end
    return found


def _foreign_at(text: str, low: str, cue: re.Match[str], rules: Rules, options: Options) -> Statement | None:
    between = rules.between.match(low, cue.end())
    start = between.end()
    while start > cue.end() and text[start - 1] in "([{\"'*-<":
        start -= 1
    value = options.value_at(text, start)
    begin = clause_begin(low, cue.start())
    denied = rules.negation.search(between[0]) or rules.denied_head.search(
        low, max(begin, cue.start() - 8), cue.start()
    )
    if value is None:
        line_end = low.find("\n", start)
        line_end = len(low) if line_end < 0 else line_end
        is_label = ":" in between[0] and low[low.rfind("\n", 0, cue.start()) + 1 : cue.start()].strip(" *#_>") == ""
        if not is_label or "\n" in between[0] or not text[start:line_end].strip(" *_"):
            return None
        said = prose(text, start, line_end, options)
        if said is None:
            return Statement(cue.start(), line_end, "", None, "stated", UNREADABLE, True)
        return Statement(cue.start(), said.end, said.letter, said.written, "stated", label=True)
    after = rules.behind.match(low, value.end) if rules.language.code in _NOT_BEHIND else None
    if denied or after:
        end = after.end() if after else value.end
        while (nor := _NOR.match(low, end)) and (more := options.value_at(text, nor.end())):
            end = more.end
        but = rules.but.match(low, end)
        turned = options.value_at(text, but.end()) if but else None
        if turned is None or turned.letter == value.letter:
            return Statement(cue.start(), after.end() if after else value.end, value.letter, None, "stated", DENIED)
        return Statement(cue.start(), turned.end, turned.letter, turned.written, "stated")
    judged = rules.verdict.match(low, value.end)
    judged = judged if judged and "。" not in judged[0] and "." not in judged[0] else None
    if judged and (judged["wrong"] or judged["no"] or judged["cross"]):
        return Statement(cue.start(), value.end, value.letter, None, "stated", DENIED)
    stance = ASSERTED
    stop = sentence_end(low, value.end) if rules.language.code in _NOT_BEHIND else cue.end()
    if is_hypothetical(low, begin, cue.start(), rules) or ASKED.match(low, value.end):
        stance = SUPPOSED
    elif is_foreign_opinion(low, begin, cue.start(), stop):
        stance = SUPPOSED
    label = ":" in between[0] or "\n" in between[0]
    return Statement(cue.start(), value.end, value.letter, value.written, "stated", stance, label)
