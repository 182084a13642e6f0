"""Find what becomes of a stated answer in the text after it: a turn ("However, D is correct"), a denial, an equal."""

from __future__ import annotations

import re

from medrefl_utils.exam.answers import hints
from medrefl_utils.exam.answers.hints import Found
from medrefl_utils.exam.answers.implied import Reading, pointed_at, read_implied
from medrefl_utils.exam.answers.text import IF, clause_begin, holds, sentence_end
from medrefl_utils.exam.answers.verdicts import verdicts

# Words with which a response turns away from the answer that it stated, and words that limit a claim to another case.
_SENTENCE_START = re.compile(r"[.!?…\n。]\W{0,5}")
_TURN = re.compile(
    r"(?:but\b|oh\b,|however\b|yet\b|hmm|upon\b|(?:on|after|with) (?:further |"
    r"closer |second |more |"
    r"careful |a )?(?:reflection|review\w*|reconsider\w*|inspection|consideration|look|thought|thinking|checking)|"
    r"(?:re-?)?(?:looking|check|checking|thinking|considering|examining|reviewing)\b|(?:self|double)[- ]?check\w*|"
    r"let me|let's|i should|i need|reflection\b|review\b|note\b|verification\b|但|仔细|再(?:想|看|次)|bei (?:genauerer|"
    r"näherer)|pensándolo|"
    r"となると|しかし|よく考え|ただ|그러나|하지만|다시|然而|不过|sin embargo|cependant|toutefois|allerdings|jedoch|"
    r"no entanto|porém|tuttavia|ripensandoci|pensando (?:melhor|bene)|однако|à la réflexion|tuy nhiên|ancak|"
    r"لكن|ومع ذلك|लेकिन|हालांकि|อย่างไรก็ตาม|แต่)"
)
_LIMITS = re.compile(
    r"\b(?:if|unless|were|could|might|may|also|without|later|long[- ]term|in case|other than|otherwise|why|"
    r"often|usually|"
    r"normally|second|alternative|tempting|common|another|additional|some|many|most (?:students|people)|"
    r"students?|people|only)\b|"
    r"\bwould\b[^.!?\n]{0,60}\b(?:in|for|with)\b|\b(?:than|others?|otros?|otras?|anderen?|autres?|outr[ao]s?|"
    r"altr[ie]|других|largo plazo|longo prazo|long terme|langfristig)\b|"
    r"其他|长期|他の|다른|長期"
)
_OWN_DENIED = re.compile(
    r"[^.!?\n]{0,40}?\b(?:contraindicated|wrong|incorrect|ruled out|out\b|excluded|unlikely|not (?:appropriate|"
    r"suitable|right|"
    r"correct|safe|an option|possible|indicated)|inappropriate|unsafe|dangerous|cannot be|can['’]t be|"
    r"(?:would|does|could|can|will|do)(?: ?not|n['’]t) (?:\w+ )?(?:settle|explain|fit|meet|satisfy|account|address|"
    r"match|"
    r"answer|be (?:right|correct|the)|work|apply|suffice|make sense|hold))"
)
_REFUSED_LETTER = re.compile(
    r"\b(?:it|this|that|the answer) (?:can(?:not|['’]t| not)|could(?:n['’]t| not)) be (?:option )?[(\"']?"
    r"(?P<letter>[a-z])\b"
)
# "Option D is also correct", after another answer: the response chooses two.
_EQUALLY = re.compile(
    r"(?P<letter>[A-Z])[\"'*)\]]{0,3}\s(?:is|are)\s(?:also|equally|just as|likewise|as well)\s(?:an?\s)?"
    r"(?:correct|right|true|acceptable|valid|plausible|appropriate)\b(?!\s(?:if|when|in|for|but)\b)"
)


def read_on(rest: Reading, found: Found, rule: str) -> tuple[Found, str]:
    """Return the stated answer, unless a later sentence turns away from it ("However, ... D is the answer").

    A clear later answer replaces the stated one. Where the text only denies the stated option, there is none; where it
    calls another option correct as well, there are several.
    """
    if len(rest.text) >= 1_500:
        rest = Reading(rest.text[:1_500], rest.low[:1_500], rest.languages, rest.options)
    for other in (
        _EQUALLY.finditer(rest.text) if holds(rest.low, (" also ", " equally ", " just as ", " as well ")) else ()
    ):
        sentence = rest.low[clause_begin(rest.low, other.start()) : other.start()]
        if other["letter"] in rest.options.letters and other["letter"] != found.letter and not IF.search(sentence):
            return Found(""), "several"
    if rule == "json":
        rest = rest.after(rest.text.find("}") + 1)
    starts = (re.match(r"\W{0,5}", rest.low), *_SENTENCE_START.finditer(rest.low))
    turn = next((start.end() for start in starts if start and _TURN.match(rest.low, start.end())), None)
    refused = False
    refusals = _REFUSED_LETTER.finditer(rest.low) if turn is None and holds(rest.low, ("n't be", "not be")) else ()
    for refusal in refusals:
        begin = clause_begin(rest.low, refusal.start())
        if refusal["letter"].upper() == found.letter and not IF.search(rest.low[begin : refusal.end()]):
            turn, refused = begin, True
    if turn is None:
        return found, rule
    rest = rest.after(turn)
    denies = refused or _denies(rest, found.letter)
    if not denies and not {rest.text[at] for at in rest.options.alone_in(rest.text)} - {found.letter}:
        return found, rule
    later = _later(rest, denies)
    if later is None:
        wrong = verdicts(rest.text, rest.low, rest.options.alone_in(rest.text), rest.languages, rest.options)[1]
        return (Found(""), "none") if refused or found.letter in wrong else (found, rule)
    places = [at for at in rest.options.alone_in(rest.text) if rest.text[at] == later.letter]
    begin = clause_begin(rest.low, places[-1]) if places else 0
    if not denies and places and _LIMITS.search(rest.low[begin : sentence_end(rest.low, places[-1])]):
        return found, rule
    return (found, rule) if later.letter == found.letter else (later, rule)


def _later(rest: Reading, denies: bool) -> Found | None:
    """Return the option that a later part of a response settles on; by its text alone only if the first is denied."""
    text, low, options = rest.text, rest.low, rest.options
    hinted = read_implied(rest)
    if hinted and hinted[0].letter and (denies or hinted[1] in ("verdict", "stated", "lone")):
        return hinted[0]
    letters = options.alone_in(text)
    wrong = verdicts(text, low, letters, rest.languages, options)[1]
    found = hints.chosen(text, low, letters, options) or hints.pointed(text, low, letters, options)
    if found is None and rest.languages:
        found = pointed_at(rest)
    return found if found and found.letter and found.letter not in wrong else None


def _denies(rest: Reading, letter: str) -> bool:
    """Say whether a text calls an option wrong, by its letter or its text."""
    for at in rest.options.alone_in(rest.text):
        if rest.text[at] == letter and _OWN_DENIED.match(rest.low, at + 1):
            return True
    return any(
        _OWN_DENIED.search(clause) and letter in rest.options.named_in(clause)
        for clause in re.split(r"[.;!?\n]|, ", rest.low)
    )
