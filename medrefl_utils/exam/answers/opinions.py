"""Recognize opinions that a response reports and does not hold: an earlier one, another person's, a first trial.

"Initially I thought the answer is A", "some would say B", "we choose C as the first hypothesis" state no answer.
"""

from __future__ import annotations

import re

from medrefl_utils.exam.answers.text import holds

# Words before a statement that report an earlier opinion or another person's: "Initially I thought", "some would say".
_OPINION_WORDS = tuple(
    "initial|at first|first|original|thought|believed|felt|inclined|tempted|might|may |could|would|say|said|think|"
    "argue|claim|believe|suggest|seem|appear|guess|choose|chose|pick|select|answered|for the time|for now|"
    "for the moment|'s |favo|prefer|recommend".split("|")
)
_PEOPLE = (
    r"(?:one|you|some|someone|somebody|many|most|students?|people|others?|they|he|she|residents?|attending|interns?|"
    r"colleagues?|doctors?|physicians?|clinicians|consultants?|professors?|teachers?|nurses?|friends?|candidates?|"
    r"examinees?|classmates?|peers?|test[- ]takers?|textbooks?|users?|annotators?|novices?|beginners?)"
)
_OPINION_HEAD = re.compile(
    r"\b(?:"
    r"(?:initially|at first|originally|first)\b[^.;:!?\n]{0,20}\b(?:thought|believed|had|felt|assumed|"
    r"considered|guessed|"
    r"said|answered|chose|picked|selected|leaned|suspected|think|say)\b|"
    r"(?:i|we)\s(?:(?:had|have|once|also|briefly|initially|previously)\s)?(?:thought|believed|assumed|guessed|felt)\b|"
    r"(?:inclined|tempted|tempting|tempt\w*|easy|natural) to (?:say|think|choose|answer|assume|believe|conclude|pick|"
    r"select)\b|"
    r"(?:first|initial|earlier|original) (?:thought|guess|instinct|impression|idea|feeling|hunch)\b|"
    r"(?:gut|instinct)\b[^.;:!?\n]{0,12}\bwas\b|"
    r"(?:may|might|could|would|can) (?:\w+\s)?(?:seem|appear|look)\b|(?:at first|on first) (?:glance|sight|look)\b|"
    rf"{_PEOPLE}\b[^.,;:!?\n]{{0,25}}\b(?:says?|said|thinks?|thought|argues?|argued|claims?|claimed|believes?|believed|"
    r"suggests?|suggested|favou?rs?|prefers?|recommends?|chooses?|chose|picks?|picked|selects?|selected|answers?|"
    r"answered|assumes?|assumed|conclude|"
    r"guess(?:ed)?|insists?|insisted)\b|"
    r"for (?:now|the moment|the time being)\b"
    r")(?:(?!\b(?:so|thus|therefore|hence|but|however|because|since|and|then)\b|[.;:!?\n]).){0,40}\Z|"
    rf"\b{_PEOPLE}['’]s?\s(?:\w+\s)?\Z"
)
# Words after a statement that make it a first trial or put it under a condition.
_TRIAL_BEHIND = re.compile(
    r"[\"'”*).\]]{0,4},?\s(?:\([^()\n]{1,40}\)\s)?(?:as (?:the|a|an|my|our) (?:first|initial|working|starting|"
    r"tentative|"
    r"preliminary|provisional)|first\b(?! line| and foremost)|for (?:now|the moment|the time being)|tentatively|"
    r"provisionally|"
    r"and (?:see|check|test|verify|revisit)\b|to (?:test|begin|start) (?:it|with)\b|"
    r"unless\b[^.!?\n]{1,60}[,.;]\s(?:and |but |which )?(?:they|it|she|he|this|that|is|"
    r"are)\b[^.\n]{0,6}\b(?:are|is|does|do|"
    r"has|was|were)\b|(?:provided|assuming|as long as|on condition) )"
)
_OVER_TWICE = re.compile(r"[^.!?\n]{0,20}\bover\b[^.!?\n]{1,30}\band\b[^.!?\n]{1,20}\bover\b")


# The same in other languages: words of time or of other people, which need a verb of opinion in the same sentence.
_EARLY = re.compile(
    r"最初|起初|一开始|一開始|刚开始|起先|有人|有些人|很多人|许多人|有的|乍一看|乍看|有同学|"
    r"当初|初めは|はじめは|一見|"
    r"처음|얼핏|언뜻|당초|일부|"
    r"\b(?:zuerst|anfangs|zunächst|ursprünglich|am anfang|manche|einige|viele|man könnte|auf den ersten blick|"
    r"сначала|поначалу|изначально|вначале|можно|некоторые|многие|кто-то|на первый взгляд|"
    r"inicialmente|al (?:principio|comienzo|inicio)|en un principio|primero|algunos|muchos|podría|uno|a primera vista|"
    r"a princípio|no (?:início|começo)|primeiro|alguns|muitos|poderia|à primeira vista|"
    r"inizialmente|in un primo momento|dapprima|alcuni|molti|si potrebbe|a prima vista|"
    r"initialement|d'abord|certains|beaucoup|on pourrait|à première vista|à première vue|"
    r"ilk başta|başta|başlangıçta|bazıları|ilk bakışta|"
    r"ban đầu|lúc đầu|thoạt|có người|một số|nhiều người)\b|all'inizio|au début|au départ|"
    r"في البداية|أول الأمر|البعض|بعض|قد|पहले|शुरू|कुछ लोग|ตอนแรก|แรกเริ่ม|บางคน|หลายคน"
)
_THINK = re.compile(
    r"认为|以为|觉得|想|说|猜|看|选|思|見え|考え|생각|보이|보일|말|"
    r"\b(?:dacht|denk|mein|sag|glaub|vermut|думал|подума|каза|кажет|скаж|счита|полага|выбер|"
    r"pens|cre[ií]|dir|consider|parec|elegi|escog|ach|diz|acredit|escolh|cred|ritene|ritien|sembr|sceg|cr[uo]|diss|"
    r"sembl|choisi|düşün|san|der|diye|seç)|nghĩ|cho rằng|tưởng|nói|có vẻ|chọn|"
    r"ظن|اعتقد|يعتقد|فكر|يقول|يبدو|لगा|लगा|लगता|सोच|मान|कह|คิด|เข้าใจ|บอก|ดูเหมือน"
)
_PAST_OPINION = re.compile(
    r"(?:原以为|本以为|还以为|以为|\b(?:pensé|creí|pensaba|creía|pensei|achei|pensava|pensavo|credevo|je pensais|"
    r"je croyais|j'ai (?:d'abord )?(?:pensé|cru)|dachte|glaubte|я думал|я думала|я считал)\b|ظننت)[^.;:!?。\n]{0,40}\Z"
)

_CONTRAST = (
    r"但是|但|然而|不过|지만|ですが|ましたが|でしたが|しかし|"
    r"\b(?:pero|aber|jedoch|но|mais|mas|ma|ama|fakat|ancak|nhưng)\b|لكن|लेकिन|แต่"
)
_CONTRASTED = re.compile(_CONTRAST)
_BUT = re.compile(
    _CONTRAST + r"|[;；:]|因此|所以|故|따라서|したがって|よって|इसलिए|لذلك|"
    r"ดังนั้น|\b(?:por lo que|por eso|por tanto|por lo tanto|daher|deshalb|also|somit|donc|quindi|pertanto|"
    r"portanto|logo|поэтому|"
    r"следовательно|значит|bu nedenle|dolayısıyla|vì vậy|do đó)\b|"
    # later in time
    r"后来|後來|之后|现在|最终|最后|发现|今は|後で|結局|나중|결국|이제|"
    r"\b(?:después|luego|ahora|finalmente|al final|ensuite|puis|après|finalement|maintenant|dann|danach|nun|jetzt|"
    r"schließlich|am ende|depois|agora|por fim|poi|dopo|adesso|infine|alla fine|потом|затем|теперь|в итоге|"
    r"в конце концов|sonra|şimdi|sonunda|sau đó|bây giờ|cuối cùng)\b|ثم|لاحقا|الآن|في النهاية|बाद में|फिर|अंत में|"
    r"ต่อมา|ภายหลัง|ตอนนี้|สุดท้าย"
)


def contrast_end(low: str, begin: int, at: int) -> int:
    """Return where the last word of contrast in a part of a text ends ("but"), or where the part begins."""
    for but in _CONTRASTED.finditer(low, begin, at):
        begin = but.end()
    return begin


def is_opinion(head: str) -> bool:
    """Say whether the words before a statement report an earlier opinion or another person's."""
    return len(head) > 8 and holds(head, _OPINION_WORDS) and _OPINION_HEAD.search(head) is not None


def is_trial(low: str, end: int) -> bool:
    """Say whether the words after a statement make it a first trial, or a comparison of several options."""
    return _TRIAL_BEHIND.match(low, end) is not None or _OVER_TWICE.match(low, end) is not None


def is_foreign_opinion(low: str, begin: int, at: int, stop: int) -> bool:
    """Say whether a sentence in another language than English reports such an opinion.

    Args:
        low: the text in lower case.
        begin: where the sentence begins.
        at: where the statement begins.
        stop: where the verb of opinion must have occurred: the statement's beginning, or the sentence's end in a
            language whose verb comes last.
    """
    if _EARLY.search(low, begin, at) is None and _PAST_OPINION.search(low, begin, at) is None:
        return False
    for but in _BUT.finditer(low, begin, at):
        begin = but.end()
    if _PAST_OPINION.search(low, begin, at):
        return True
    early = _EARLY.search(low, begin, at)
    return early is not None and _THINK.search(low, early.end(), stop) is not None
