"""Find the parts of a clinical text that deny what they name: "no fever", "denies chest pain", "rash is absent".

The method is that of NegEx (Chapman et al. 2001): a trigger, a direction and a scope that ends at a conjunction or at
the sentence's end. The lists of triggers are ours.
"""

from __future__ import annotations

import re

_BEFORE = re.compile(
    r"\b(?:no|denies|denied|deny|denying|without|not|never|neither|nor|lacks|lacked|lacking|absent|"
    r"negative for|free of|absence of|lack of|unremarkable for|rules? out|ruled out|ruling out|"
    r"(?:doesn|didn|isn|wasn|hasn|hadn|haven|don)['’]t)\b",
    re.IGNORECASE,
)
# A trigger in these does not deny the finding that follows.
_PSEUDO = re.compile(
    r"\b(?:no (?:increase|change|improvement|relief|longer|other|further|one|matter|difficulty|doubt|response)|"
    r"not (?:only|just|certain|sure|improve\w*|respond\w*|reliev\w*|resolv\w*|help\w*|compliant|adherent|been taking|"
    r"taking|recall|remember|know|seek|sought|significantly (?:improve|change)\w*|drain\w*|cause[ds]?|interfere\w*)|"
    r"without (?:improvement|relief|difficulty|treatment|change)|never (?:been )?(?:treated|improved|resolved))\b",
    re.IGNORECASE,
)
_AFTER = re.compile(
    r"\b(?:(?:is|are|was|were|has been|have been|being) (?:absent|negative|denied|excluded|ruled out|not (?:present|"
    r"seen|found|noted|observed|detected|palpable|visible|elicited|appreciated))|(?:is|are|was|were) unlikely)\b",
    re.IGNORECASE,
)
_END = re.compile(
    r"[;:]|[.!?](?=\s|$)|\n|\b(?:but|however|although|though|except|despite|yet|besides|which|because|since|until|"
    r"after|before|when|while|whereas|presents?|reports?|complains?|reveals?|shows?|has had|has been|"
    r"and (?:also )?(?:has|had|is|was|does|did|takes|uses|drinks|smokes|works|lives|states|says|feels|appears|"
    r"develop\w*)|"
    r"he has|she has|there is|there are|other than|apart from|aside from)\b",
    re.IGNORECASE,
)
_ITEM = re.compile(r",(?:\s+and|\s+or)?\s+|\s+(?:or|nor|and)\s+")
_REACH = 6  # words from the trigger, or from the last item of its list


def negated_spans(text: str) -> list[tuple[int, int]]:
    """Return the spans (start, end) of a text in which a named finding is denied.

    After a trigger, the span reaches over a list ("no fever, chills or weight loss") and at most 6 words beyond its
    last separator. Before a closing trigger ("... is absent"), it reaches back to the clause's begin, at most 6 words.
    """
    pseudo = [match.span() for match in _PSEUDO.finditer(text)]
    spans = []
    for match in _BEFORE.finditer(text):
        if any(start <= match.start() < end for start, end in pseudo):
            continue
        end = _END.search(text, match.end())
        limit = end.start() if end else len(text)
        spans.append((match.end(), _reach(text, match.end(), limit)))
    for match in _AFTER.finditer(text):
        begin = max([0, *(end.end() for end in _END.finditer(text, 0, match.start()))])
        words = [word.start() for word in re.finditer(r"\S+", text[begin : match.start()])]
        if words:
            spans.append((begin + words[max(0, len(words) - _REACH)], match.start()))
    return spans


def _reach(text: str, start: int, limit: int) -> int:
    """Return where the scope of a trigger ends: 6 words after the last separator of a list that goes on."""
    place = start
    while True:
        item = _ITEM.search(text, place, limit)
        words = list(re.finditer(r"\S+", text[place : item.start() if item else limit]))
        if len(words) > _REACH:
            return place + words[_REACH - 1].end()
        if item is None:
            return limit
        place = item.end()
