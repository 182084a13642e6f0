"""Recognize clauses that name an option's text and do not choose it: a refusal, a warning, the patient's history.

"Warfarin should be avoided", "she is allergic to aspirin" and "he already takes heparin" choose nothing.
"""

from __future__ import annotations

import re

from medrefl_utils.exam.answers.options import Options
from medrefl_utils.exam.answers.text import holds, lower

_WORDS = tuple(
    "avoid|discontin|stop|hold|held|wrong|unsafe|danger|harm|hazard|advis|unwise|inappropriate|poor|bad|worst|optimal|"
    "inferior|mistake|error|refrain|ng but|all but|except|contra|terato|worr|wors|exacerb|aggrav|concern|tempting|too |"
    "allerg|intoler|history|tak| on |receiv|took|using|already|currently|medication|caus|trigger|induced|precip|risk|"
    "given|prescribed|started|treated|no |not|n't|evita|suspend|nimmt|toma|assume|prend|alerg|contra|kontra|"
    "vermei|vermie|prohib|abgesetzt|"
    "absetzen|proib|sospend|tempt|mother|father|brother|sister|son|daughter|parent|family|uncle|aunt|known|control|"
    "underl|preex|"
    "pre-ex|standing|chronic|prior|previous|died|symptom|sign|feature|dose|effect|level|toxic|resist|monitor|revers|"
    "while|"
    "against|pelig|dangere|perig|peric".split("|")
)
# A refusal or a warning: the clause chooses nothing, also where it has a word of choice ("is the wrong choice").
_REFUSES = re.compile(
    r"\b(?:avoid(?:ed|s|ing)?|avoidance|discontinu\w+|stop(?:s|ped|ping)?|withh[eo]ld\w*|hold|held|holding|"
    r"wrong|unsafe|dangerous|harmful|hazardous|inadvisable|ill-advised|unwise|inappropriate|"
    r"(?:poor|bad|worst|suboptimal|inferior) (?:choice|option|idea|candidate)|(?:a|an) (?:mistake|error)|"
    r"refrain\w*|everything but|everything except|anything but|anything except|all but|contra-?indicat\w*|teratogenic|"
    r"(?:worried|concerned) about|(?:decided|advise[sd]?|argue[sd]?|recommend(?:s|ed)?|choose|chose) against|"
    r"reduce the dose|worsen\w*|exacerbat\w*|aggravat\w*|tempting|"
    r"too (?:aggressive|slow|risky|invasive|early|late|weak|dangerous|strong)|no (?:role|place|benefit)|"
    r"should(?: not|n['’]t)|must not|do(?:es)? not|cannot)\b"
)
# A mention: the clause chooses nothing unless it has a word of choice ("the best drug for her allergy is").
_MENTIONS = re.compile(
    r"\b(?:allerg\w+|intoleran\w+|(?:past |medical |family )?history of|the history|"
    r"(?:is|was|are|were|been|be) (?:already |currently |still |now |also )?(?:taking|using|on)|"
    r"(?:patient|he|she|man|woman|who) (?:also |regularly |still )?takes|"
    r"(?:already|currently|previously) (?:takes?|took|uses?|used|on|taking|received?|receives|receiving)|"
    r"has been (?:\w+ )?(?:on|taking|treated with)|had (?:been )?(?:taken|received)|"
    r"received|was (?:given|prescribed|started on)|took|"
    r"home medications?|medications? (?:include|list)\w*|"
    r"(?:was|were|is|are) (?:\w+ )?(?:caused|triggered|induced|precipitated) by|caused the|"
    r"(?:his|her|their|the patient's) (?:\w+ )?(?:mother|father|brother|sister|son|daughter|parents?|family|"
    r"uncle|aunt)\b|"
    r"(?:known|well[- ]controlled|underlying|pre-?existing|longstanding|chronic|prior|previous)\b|died of|"
    r"(?<!is )(?<!are )(?<!be )treated (?:for|with)|(?:patient|he|she|man|woman|who) is (?:\w+ )?treated (?:for|with)|"
    r"(?:symptoms|signs|features) of|(?:dose|effects?|level|toxicity|resistance) of|monitor\w*|reverse[sd]?|while on|"
    r"well controlled|risk of|risks? (?:with|from)|may cause|can cause|could cause)\b"
)
_CHOICE = re.compile(
    r"\b(?:best|most (?:likely|appropriate|suitable|probable|effective|consistent|common|important|useful|"
    r"accurate)|correct|answer|of choice|preferred|first[- ]line|therefore|thus|hence|diagnosis|suggests?|indicates?|"
    r"consistent with|should|give|start|choose)\b"
)
# "The drug to avoid is aspirin" answers a question that asks for it.
_ASKED_FOR = re.compile(
    r"\b(?:avoid(?:ed)?|contra-?indicated|stop(?:ped)?|discontinued?|withheld|hold|unsafe|dangerous|harmful|wrong|"
    r"inappropriate|worst|worsens?|except)\b[^.,;]{0,40}?\b(?:is|are|would be|be)\b|"
    r"\bmost (?:dangerous|harmful)\b|\bleast\b"
)
_OTHER_REFUSES = re.compile(
    r"évit|contre-indiqu|déconseill|arrêter|contraindicad|contraindicat|controindicat|kontraindiziert|vermeid|vermied|"
    r"abgesetzt|absetzen|\bnimmt\b|\bevita|suspend[ei]|alérgic|alergia|allergi[ceqs]|prohibid|"
    r"\btoma\b|\btomando\b|\bassume\b|\bprend (?:déjà )|sospend|proibid|peligros|dangereu|gefährlich|perigos|"
    r"pericolos|опасн|риск|"
    r"избега|противопоказан|аллерги|отменить|нельзя|принимает|"
    r"避免|禁忌|禁用|过敏|過敏|停用|停药|停用|正在服用|正在使用|长期使用|风险|会导致|会引起|致畸|危险|副作用|不宜|不能用|不应用|不可用|不用|不适合|不推荐|既往|"
    r"避け|禁止|服用中|中止|금기|피해야|피하|중단|알레르기|복용 중|"
    r"تجنب|ممنوع|موانع|निषिद्ध|बचना|बचें|tránh|chống chỉ định|ngừng|dị ứng|หลีกเลี่ยง|ห้าม|แพ้|kontrendike|kaçın|alerji"
)
_CLAUSES = re.compile(
    r"(?<=[^\d][,;:])\s?|(?<=[、,;])(?=[^\d\s])|\s(?=(?:so|therefore|thus|hence|but|because|since|whereas|while|"
    r"although|and (?:then )?(?:start|begin|give|use|add|switch|replace)|"
    r"which makes|due to|y|et|und|mais|pero|aber|но|а)\b)"
)
# A clause that chooses an option by its text alone has one of these: an order, a need, a diagnosis.
_CUES = re.compile(
    r"\b(?:give|giving|gives|given|gets?|start\w*|use|using|begin|reverse|speaks for|lies|equals|administer|"
    r"prescrib\w*|treat(?:ment|ed with|"
    r" with)?|order|"
    r"perform|obtain|get|do|add|initiat\w*|continue|switch|need(?:s|ed)?|requir\w*|receive|should|must|warrant\w*|"
    r"recommend\w*|indicated|therapy|management|next step|this is|it is|it's|that is|here is|these are|diagnos\w*|"
    r"suggest\w*|point(?:s|ed|ing)? (?:to|at|toward)|consistent|classic|typical|characteristic|compatible|due to|"
    r"caused by|cause|because of|explain\w*|fit(?:s|ting)?|match\w*|show\w*|indicat\w*|reveal\w*|calls for|lead\w* to|"
    r"result\w*|choose|chosen|pick|opt|prefer\w*|best|most|likely|answer|option|conclu\w*|therefore|thus|hence|so|"
    r"(?:block|inhibit|bind|target|stimulat|activat)\w*|acts?|works?|has|have|lacks?|is|are|would|will|select\w*|"
    r"consider\w*|final|correct|right|mechanism|i think|i believe|only)\b|"
    r"\b(?:se trata|il s'agit|handelt|trata-se|si tratta|est|ist|es|è|é)\b|[=→:]"
)
_CONSIDERS = re.compile(
    r"\W{0,6}(?:(?:next|first|now|then|second|third|so|okay),? )?(?:(?:let me|let's|let us|we|i'll|"
    r"we'll) )?(?:now |first |next )?"
    r"(?:consider|look at|examine|evaluate|check|discuss|review)\b(?![^.\n]{0,80}\b(?:best|correct|answer|most|"
    r"right)\b)"
)
_INSERTED = re.compile(r",\s?(?:however|though|therefore|in contrast|by contrast|on the other hand),", re.IGNORECASE)
_SHORT_WORDS = frozenset((" yes ", " no ", " maybe "))


def without_refusals(sentence: str, options: Options) -> str:
    """Return a sentence without its clauses that refuse or only mention an option.

    Options that hold such words themselves ("Stop aspirin", "Allergic rhinitis") leave the sentence as it is.
    """
    low = lower(sentence)
    if low.isascii() and not holds(low, _WORDS):
        return sentence
    if not (_REFUSES.search(low) or _MENTIONS.search(low) or _OTHER_REFUSES.search(low)):
        return sentence
    if any(
        _REFUSES.search(option) or _MENTIONS.search(option) or _OTHER_REFUSES.search(option)
        for option, _ in (*options.texts, *options.unspaced)
    ):
        return sentence
    if _ASKED_FOR.search(low):
        return sentence
    return " ".join(clause for clause in _CLAUSES.split(_INSERTED.sub("", sentence)) if not _refused(lower(clause)))


def _refused(clause: str) -> bool:
    if _REFUSES.search(clause) or _OTHER_REFUSES.search(clause):
        return True
    return _MENTIONS.search(clause) is not None and _CHOICE.search(clause) is None


def is_undecided(text: str, options: Options) -> bool:
    """Say whether a text holds several of the words yes, no and maybe, which are then options and also plain words."""
    words = {letter for option, letter in options.texts if option in _SHORT_WORDS}
    return len(words) > 1 and len(words & set(options.named_in(text))) > 1


def has_cue(sentence: str) -> bool:
    """Say whether a sentence can choose an option by its text: it has a word of choice, or is a short phrase."""
    low = lower(sentence)
    return not low.isascii() or len(low.split()) < 5 or _CUES.search(low) is not None


def is_review(low: str, begin: int) -> bool:
    """Say whether a sentence only turns to an option ("Let me consider option A")."""
    return _CONSIDERS.match(low, begin) is not None
