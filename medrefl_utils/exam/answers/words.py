"""Words with which each language states an answer: data for ``answers``, one row per language.

English has rules of its own in ``statements``; every other language uses the same rules with its row. A row
lists words in lower case. Patterns join the words of a field with "|", so a word may contain regular expressions.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """The words of one language.

    ``probe``: strings of which one occurs in every text that states an answer. ``answer``: nouns and verbs that
    introduce an answer. ``option``: nouns before or after an option's letter. ``right`` and ``wrong``: verdicts.
    ``joins``: words between a noun and the letter (copulas, articles, adverbs). ``negation``: words that deny.
    ``but``: words before the answer after a denial ("not A but C"). ``condition``: words of a hypothetical.
    ``retraction``: words that retract what precedes. ``choose``: verbs of choice, in the first person.
    """

    code: str
    probe: tuple[str, ...]
    answer: str
    option: str
    right: str
    wrong: str
    joins: str
    negation: str
    but: str
    condition: str
    retraction: str
    choose: str


LANGUAGES = (
    Language(
        code="zh",
        probe=(
            "答",
            "不是",
            "符合题意",
            "选",
            "選",
            "正确",
            "正確",
            "最",
            "错误",
            "不对",
            "合适",
            "适合",
            "恰当",
            "合理",
        ),
        answer="答案|答复|回答|答",
        option="选项|選項|选择|選擇",
        right="符合题意|最?符合(?:题意|病情|诊断)|更(?:合适|恰当|适合|合理|符合|正确)|正确|正確|对的|最佳|最好|最合适|最適合|最可能|最恰当|最符合|最有可能|成立|对(?![于比照症应称])",
        wrong="(?:也|都|均)?(?:不正确|不正確|错误|錯誤|不对|不對|错)|不符合|不成立|不合适|可以排除|排除",
        joins="很可能是|可能是|可能|大概是|应该是|應該是|应当是|应为|應為|应是|就是|则是|是|为|為|乃|即|的|应该|应|應該|應|最终|最後|最后|正确|正確|最佳|"
        "最合适|最可能|标准|参考|因此|所以|我的|选择|选|選|选项|選項|项|項",
        negation="不是|并非|並非|不选|不可能是|不应该是|不应该|不应|不能|不会是|不选|非",
        but="而是|应选|应该选|应该是|而应",
        condition="如果|假如|若|倘若|假设|要是|假使",
        retraction="不对[,，。]|不,|等等|等一下|弄错|搞错|我错了|更正|纠正|重新考虑|说错|抱歉",
        choose="改为选|改为|改选|故选择|故选|应选择|应选|應選擇|應選|选择|選擇|本题选|选(?!项)|選(?!項)",
    ),
    Language(
        code="ko",
        probe=("답", "선택", "정답", "올바른", "맞", "옳", "틀", "가장", "적절"),
        answer="정답|최종 답변|최종 답|답변|답안|해답|답",
        option="선택지|보기|선택|옵션|번",
        right="더 (?:적절|적합|맞|가능성)|정답|답(?!은|:)|맞습니다|맞다|옳습니다|옳다|올바른|올바릅니다|"
        "적절합니다|가장 적절|가장 적합|가장 가능성|맞아",
        wrong="틀렸|틀립|틀린|오답|옳지 않|맞지 않|적절하지 않|부적절|잘못",
        joins="은|는|이|가|을|를|입니다|올바른|최종|가장|적절한|적합한|바로|따라서|선택지|보기|옵션|답",
        negation="아닙|아니|아닌|않",
        but="아니라|라",
        condition="만약|만일|라면|다면",
        retraction="아니요|아니,|아니오|다시 생각|잘못 생각|실수|정정|틀렸네|잠깐",
        choose="선택하|선택합|고르|고릅|골랐|택하",
    ),
    Language(
        code="ja",
        probe=("答", "不是", "正", "選", "最も", "誤", "適切", "妥当", "適し", "の方が", "のほうが"),
        answer="答え|答|解答|回答|正解|正答|今回|本症例|本例",
        option="選択肢|番|選択",
        right="より適切|より妥当|より適し|正解|答え(?!は)|正しい|正答|適切|最も適切|最も考えられる|最も可能性|最適",
        wrong="誤り|間違い|不正解|正しくない|正しくありません|不適切|適切ではない|適切でない|当てはまらない|否定的",
        joins="は|が|を|の方が|のほうが|の|と|です|である|となります|最終的な|最終|正しい|最も|適切な|選択肢|したがって|よって|答え|解答|回答",
        negation="ではありません|ではない|じゃない|ではなく|でなく|はありえない|ではあり",
        but="ではなく|でなく|なく",
        condition="もし|であれば|ならば|場合|仮に|だったら",
        retraction="いや|いえ、|いいえ|間違えました|間違えた|間違いでした|訂正|待って|やっぱり|やはり違|考え直",
        choose="選びます|選択します|選ぶ|選択する|を選",
    ),
    Language(
        code="es",
        probe=(
            "respuesta",
            "opci",
            " es ",
            " sino ",
            "seleccion",
            "elijo",
            "escojo",
            "elegir",
            "sería",
            "quedo con",
            "opto por",
            "descart",
        ),
        answer="respuesta|solución",
        option="opción|opcion|alternativa|letra|respuesta|inciso",
        right="correct[ao]|verdader[ao]|mejor|más probable|más adecuad[ao]|más apropiad[ao]|adecuad[ao]|indicad[ao]",
        wrong="incorrect[ao]|falsa?o?|errónea?o?|no es correct[ao]|descartad[ao]|descartamos|poco probable",
        joins="correct[ao]|final|definitiva|más|probable|adecuad[ao]|apropiad[ao]|es|sería|debe ser|debería ser|será|"
        "la|el|a|"
        "los|las|un|una|opción|opcion|alternativa|letra|por lo tanto|por tanto|entonces|pues|claramente|"
        "a la pregunta|mi|mejor|aquí|en este caso",
        negation="no|tampoco|nunca|jamás",
        but="sino|sino que es|pero",
        condition="si|en caso de|suponiendo|supongamos|hubiera|estuviera|fuera",
        retraction="espera|esperen|me equivoqué|en realidad|corrección|perdón|mejor dicho|pensándolo|no,|un error",
        choose="elijo|escojo|selecciono|elegiría|elegimos|me quedo con|opto por",
    ),
    Language(
        code="fr",
        probe=("réponse", "reponse", " est ", "c'est", "n'est", "l'option", "choisis", "sont "),
        answer="réponse|reponse|solution",
        option="option|proposition|lettre|réponse|choix|item",
        right="correcte?|juste|vraie?|exacte?|bonne|meilleure?|plus probable|plus appropriée?|appropriée?|indiquée?",
        wrong="incorrecte?|fausse|faux|inexacte?|pas correcte?|erronée?|exclue?|peu probable|à exclure|mauvaise",
        joins="correcte?|finale?|définitive|bonne|meilleure|exacte|juste|est|serait|doit être|sera|donc|la|le|les|l'|"
        "un|une|"
        "option|proposition|lettre|réponse|choix|bien|à cette question|à la question|ma|plus|probable|appropriée?|"
        "c'est|ici|dans ce cas",
        negation="ne|n'|pas|jamais|aucun|ni",
        but="mais|mais plutôt|plutôt",
        condition="si|s'il|supposons|en cas de|dans le cas|était|serait-ce",
        retraction="attendez|attends|je me suis trompée?|en fait|en réalité|correction|pardon|erreur|non,|"
        "plutôt(?! que)",
        choose="je choisis|je choisirais|je sélectionne|je retiens|j'opte pour|choisissons|choisir",
    ),
    Language(
        code="de",
        probe=("antwort", " ist ", " sondern ", "lösung", "loesung", "wähle", "lautet", "somit", "richtig"),
        answer="antwort|lösung|loesung|antwortmöglichkeit|antwortoption",
        option="option|antwort|antwortmöglichkeit|buchstabe|möglichkeit|aussage",
        right="passt besser|besser geeignet|richtige?|korrekte?|zutreffend|trifft zu|stimmt|beste|"
        "am besten geeignet\\w*|am wahrscheinlichsten|"
        "wahrscheinlichste\\w*|am ehesten|geeignetste\\w*",
        wrong="falsch|inkorrekt|nicht richtig|nicht korrekt|unzutreffend|trifft nicht zu|ausgeschlossen|"
        "unwahrscheinlich",
        joins="richtige?|korrekte?|endgültige?|finale|beste|ist|lautet|wäre|muss|sein|also|somit|daher|demnach|"
        "folglich|die|"
        "der|das|den|ein|eine|option|antwort|antwortmöglichkeit|buchstabe|auf die frage|meine|hier|zutreffende?|"
        "möglichkeit|in diesem fall|mich|für",
        negation="nicht|kein\\w*|niemals|nie|weder",
        but="sondern|vielmehr",
        condition="wenn|falls|wäre|angenommen|sofern|hätte",
        retraction="moment|ich habe mich geirrt|ich habe mich vertan|korrektur|nein,|doch nicht|tatsächlich|warte|"
        "eigentlich|"
        "entschuldigung|besser gesagt|vielmehr|genauer überlegt|das ist falsch",
        choose="wählen|ich wähle|wähle ich|ich würde|ich entscheide mich für|wählen wir|nehme ich|ich nehme",
    ),
    Language(
        code="pt",
        probe=("resposta", "alternativa", " é ", "opção", "gabarito", "escolho", "não"),
        answer="resposta|gabarito|solução",
        option="alternativa|opção|opcao|letra|resposta|item",
        right="corret[ao]|certa|verdadeir[ao]|melhor|mais provável|mais adequad[ao]|mais apropriad[ao]|adequad[ao]|"
        "indicad[ao]",
        wrong="incorret[ao]|errad[ao]|fals[ao]|não está corret[ao]|descartad[ao]|improvável|pouco provável",
        joins="corret[ao]|certa|final|definitiva|mais|adequad[ao]|provável|é|seria|deve ser|será|está|a|o|as|os|um|uma|"
        "alternativa|opção|opcao|letra|portanto|então|logo|à pergunta|da questão|minha|melhor|aqui|neste caso",
        negation="não|nunca|jamais|nem",
        but="mas sim|e sim|mas|sim",
        condition="se|caso|supondo|suponha|estivesse|fosse|tivesse",
        retraction="espere|espera|me enganei|enganei-me|na verdade|correção|desculpe|ou melhor|não,|um erro|"
        "pensando melhor",
        choose="escolho|seleciono|eu escolheria|opto por|fico com|marco|marcar|assinalo",
    ),
    Language(
        code="it",
        probe=("risposta", "opzione", " è ", "scelgo", "corrett"),
        answer="risposta|soluzione",
        option="opzione|alternativa|lettera|risposta|scelta",
        right="corrett[ao]|esatt[ao]|giust[ao]|ver[ao]|migliore|più probabile|più indicat[ao]|più appropriat[ao]|"
        "più adatt[ao]",
        wrong="sbagliat[ao]|errat[ao]|fals[ao]|scorrett[ao]|non corrett[ao]|non è corrett[ao]|esclus[ao]|improbabile|"
        "da escludere",
        joins="corrett[ao]|esatt[ao]|giust[ao]|finale|definitiva|migliore|più|è|sarebbe|deve essere|dovrebbe essere|"
        "sarà|"
        "quindi|dunque|pertanto|la|il|lo|l'|un|una|opzione|alternativa|lettera|alla domanda|mia|probabile|"
        "indicat[ao]|qui|in questo caso",
        negation="non|mai|né",
        but="ma|bensì|ma piuttosto",
        condition="se|qualora|nel caso|supponiamo|fosse|avesse",
        retraction="aspetta|aspetti|ho sbagliato|mi sono sbagliat[oa]|in realtà|mi correggo|correzione|scusa|no,|"
        "anzi|un errore",
        choose="scelgo|sceglierei|seleziono|opto per|scegliamo",
    ),
    Language(
        code="ru",
        probe=("ответ", "вариант", "выбира", "верн", "правильн", "неверн", "подход", "вероятн", "лучше"),
        answer="ответ(?:ом|а)?",
        option="вариант(?:ом|а)?|ответ|пункт|буква|опция",
        right="правильнее|подходит лучше|лучше подходит|подходит больше|предпочтительнее|вероятнее|верно|верен|верный|"
        "верна|правильн(?:о|ый|ым|ая)|правилен|наиболее вероят\\w+|"
        "наиболее подходящ\\w+|"
        "лучш\\w+|"
        "наиболее уместн\\w+",
        wrong="неверно|неверен|неверный|неверна|неправильн\\w+|ошибочн\\w+|не подходит|исключ[её]н\\w*|исключается|"
        "маловероят\\w+|не верно",
        joins="правильн(?:ый|ым|ая)|верн(?:ый|ым)|окончательный|итоговый|мой|наиболее|вероятный|подходящий|это|есть|"
        "является|"
        "будет|был бы|следовательно|значит|таким образом|вариант(?:ом|а)?|ответ(?:ом)?|под буквой|буква|на вопрос|"
        "на этот|здесь|в данном случае",
        negation="не|нельзя|никогда|ни",
        but="а|но",
        condition="если|предположим|допустим|в случае",
        retraction="нет,|я ошиб(?:ся|лась)|ошибка|подожд\\w+|исправл\\w+|поправ\\w+|точнее|вернее|на самом деле|"
        "простите|извините",
        choose="я выбираю|выбираю|выберу|я бы выбрал|выбираем|остановлюсь на",
    ),
    Language(
        code="ar",
        probe=("جابة", "جواب", "أختار", "خيار", "صحيح", "خاطئ", "خطأ", "الأنسب", "الأرجح", "احتمال"),
        answer="ال[إا]جابة|الجواب|جواب|إجابة|اجابة|إجابتي|الحل",
        option="الخيار|خيار|الحرف|ال[إا]جابة|البديل",
        right="صحيحة?|صواب|الصحيحة?|الأنسب|الأرجح|الأكثر احتمال\\w*|الأفضل|هو الجواب",
        wrong="خاطئة?|خطأ|غير صحيحة?|مستبعدة?|غير مناسبة?|غير محتملة?",
        joins="الصحيحة?|النهائية?|الأفضل|الأنسب|المناسبة?|هي|هو|ستكون|تكون|يكون|الخيار|الحرف|الإجابة|إذن|إذا|لذلك|"
        "بالتالي|"
        "على السؤال|البديل|رقم|إذًا|هنا|في هذه الحالة",
        negation="ليست?|لا|لن|غير|ليس",
        but="بل|وإنما|ولكن|لكن",
        condition="لو|إذا كان\\w*|في حال|لكان\\w*|بفرض|افترض",
        retraction="لا[,،]|أخطأت|انتظر|عفوا|عفوًا|تصحيح|في الحقيقة|بل|مهلا|آسف",
        choose="أختار|سأختار|نختار|اختار|اخترت",
    ),
    Language(
        code="hi",
        probe=("उत्तर", "जवाब", "विकल्प", "चुन", "सही", "गलत", "उपयुक्त", "संभाव", "बेहतर"),
        answer="उत्तर|जवाब",
        option="विकल्प|उत्तर|अक्षर",
        right="अधिक (?:सही|उपयुक्त)|बेहतर|सही|सटीक|सबसे उपयुक्त|सबसे संभावित|सबसे अधिक संभा\\w*|उचित|सर्वोत्तम",
        wrong="गलत|ग़लत|अनुचित|सही नहीं|असंभव|उपयुक्त नहीं",
        joins="सही|अंतिम|सबसे|उपयुक्त|अच्छा|मेरा|है|होगा|होना चाहिए|विकल्प|इसलिए|अतः|अक्षर|का|यह|उत्तर|प्रश्न|इस|यहाँ|यहां",
        negation="नहीं|न|मत",
        but="बल्कि|लेकिन|परंतु",
        condition="यदि|अगर|मान ल\\w+|होता तो|होती तो|होते तो",
        retraction="नहीं,|गलती|रुकिए|रुको|क्षमा|माफ़|सुधार|वास्तव में|दरअसल",
        choose="चुनता|चुनती|चुनूंगा|चुनूँगा|चुनते|चुनें|चयन करता",
    ),
    Language(
        code="th",
        probe=("ตอบ", "เลือก", "ถูก", "ผิด", "เฉลย", "ที่สุด", "เหมาะ", "กว่า"),
        answer="ข้อที่ถูกต้อง|ข้อที่ถูก|ตัวเลือกที่ถูกต้อง|คำตอบ|เฉลย|ตอบ",
        option="ข้อ|ตัวเลือก|คำตอบ",
        right="เหมาะสมกว่า|ดีกว่า|ถูกต้อง|ถูก|เหมาะสมที่สุด|ที่สุด|ดีที่สุด",
        wrong="ไม่ถูกต้อง|ไม่ถูก|ผิด|ไม่เหมาะสม|ไม่ใช่คำตอบ",
        joins="ที่ถูกต้องที่สุด|ที่ถูกต้อง|ที่ถูก|ที่เหมาะสมที่สุด|ที่ดีที่สุด|สุดท้าย|คือ|เป็น|จึง|ควร|น่าจะ|ข้อ|ตัวเลือก|ของฉัน|ดังนั้น|เท่ากับ|ได้แก่|ในกรณีนี้",
        negation="ไม่ใช่|ไม่ควร|ไม่ได้|ไม่",
        but="แต่เป็น|แต่",
        condition="ถ้า|หาก|สมมติ|สมมุติ|กรณี",
        retraction="ไม่ใช่|ผิดพลาด|เดี๋ยว|ขอแก้|ขอโทษ|ที่จริง|เข้าใจผิด|แก้ไข",
        choose="ฉันเลือก|ผมเลือก|ขอเลือก|เลือก",
    ),
    Language(
        code="vi",
        probe=("đáp án", "trả lời", "chọn", "câu", "đúng", "sai", "phù hợp", "khả năng"),
        answer="đáp án|câu trả lời|trả lời|lời giải",
        option="đáp án|phương án|lựa chọn|câu|ý",
        right="phù hợp hơn|đúng hơn|tốt hơn|đúng|chính xác|phù hợp nhất|đúng nhất|tốt nhất|nhiều khả năng nhất|"
        "khả năng nhất",
        wrong="sai|không đúng|không chính xác|không phù hợp|loại trừ|bị loại",
        joins="đúng nhất|đúng|chính xác|cuối cùng|phù hợp nhất|tốt nhất|là|sẽ là|phải là|nên là|của tôi|"
        "cho câu hỏi này|"
        "phương án|lựa chọn|đáp án|câu|ý|chọn|vì vậy|do đó|thì|ở đây",
        negation="không phải|không|chẳng|chưa",
        but="mà là|mà|nhưng",
        condition="nếu|giả sử|trong trường hợp|khi",
        retraction="không,|tôi nhầm|nhầm|khoan|đợi đã|sửa lại|xin lỗi|đính chính|thực ra|thật ra|chờ đã",
        choose="tôi chọn|ta chọn|chọn|xin chọn",
    ),
    Language(
        code="tr",
        probe=("cevap", "cevab", "yanıt", "yanit", "şık", "seçene", "seçiyorum", "doğru", "yanlış", "uygun"),
        answer="cevab[ıi]m?|cevap|yanıt[ıi]?|yanit",
        option="şıkkı|şık|seçeneği|seçenek|seçeneğini|şıkkını",
        right="daha (?:uygun|doğru)|doğru(?:dur)?|en uygun|en olası|en iyi|en muhtemel",
        wrong="yanlış(?:tır)?|hatalı(?:dır)?|uygun değil|doğru değil|olası değil|elenir",
        joins="doğru|nihai|en|uygun|olası|iyi|kesin|seçenek|seçeneği|şıkkı|şık|bu nedenle|dolayısıyla|olarak|olmalı|"
        "son|sorunun|"
        "cevap|yanıt|benim|burada|bu durumda",
        negation="değil(?:dir)?|olamaz|hayır",
        but="aksine|fakat|ama",
        condition="eğer|olsaydı|olursa|ise|varsayalım",
        retraction="hayır,|yanıldım|bekle|düzelt\\w*|hata yaptım|aslında|pardon|özür|daha doğrusu",
        choose="seçiyorum|seçerim|seçeriz|tercih ediyorum|işaretliyorum",
    ),
)

OTHERS = (
    "antwoord|svar|svaret|vastaus|odpowiedź|odpověď|odpoveď|απάντηση|תשובה|התשובה|jawaban|jawapan|răspuns|răspunsul|"
    "válasz|"
    "відповідь|پاسخ|উত্তর|পதில்|பதில்|సమాధానం|جواب|jibu|sagot|atsakymas|atbilde|vastus|odgovor|отговор|одговор"
)
"""The word "answer" in further languages, for the label alone ("Antwoord: C")."""

BARE = frozenset(
    """la el le il lo les es est c'est ist è é a o letra lettre lettera opción option opzione opção alternativa
    respuesta richtig correct correcta correcte corretta верно вариант буква ответ es die das der also donc quindi
    logo luego seçenek şık cevap ý câu chọn""".split()
)
"""Words that may precede the letter of a short answer ("La D.", "C'est D.")."""

EPITHETS = frozenset(
    "coli faecalis faecium cloacae aerogenes histolytica granulosus multilocularis vermicularis difficile perfringens "
    "botulinum tetani trachomatis pneumoniae psittaci diphtheriae jejuni fetus albicans neoformans glabrata auris "
    "tropicalis immitis burnetii fragilis burgdorferi anthracis cereus pertussis parapertussis henselae quintana "
    "melitensis abortus suis pseudomallei cepacia dermatitidis recurrentis baumannii fumigatus flavus lumbricoides "
    "actinomycetemcomitans israelii duodenale hydrophila phagocytophilum latum medinensis corrodens chaffeensis "
    "floccosum lamblia vaginalis intestinalis influenzae ducreyi pylori capsulatum belli scapularis tularensis "
    "necrophorum "
    "nucleatum gondii aureus epidermidis".split()
)
"""Species names that follow a genus initial: the "E" of "E. coli" is no option's letter."""

GOES_ON = frozenset(
    """ni né nem noch ни
    unless despite after before until being having among between during under without via through namely is was are
    because since as due for which and or nor not rather given based would will should must but if in from with
    where when by on per to the this that it here has fits explains seems remains represents best although though
    while whereas so then indeed according considering instead over only alone too also can cannot could may might
    describes matches corresponds appears comes becomes had did makes provides being who whose hence therefore thus
    i we does
    es porque ya
    pues por y o no debido sería que est car parce puisque et ou ist weil da denn wählen nehmen und oder richtig
    wäre é pois já e está è perché poiché sarà korrekt correcta correcto correcte exacte corretta corretto так
    потому и или не а верно поскольку это является является, vì là và hoặc do đúng sai mà çünkü ve veya değil şıkkı
    şıkkıdır seçeneği seçeneğidir seçeneğini şıkkını doğru sino sondern ma mais mas explanation reason reasoning
    rationale justification note confidence option choice right wrong correct incorrect falsch n fausse faux juste
    vraie incorreta incorrecta falsa errada certa sbagliata errata giusta esatta yanlış неверно верна неверен
    ошибочно गलत सही no non não pas या और है नहीं क्योंकि होगा विकल्प و أو لأن هو هي ليس صحيح بل""".split()
)
"""Words that may follow a bare letter which is an answer ("Answer: C because ..."), and not an article or a name."""

AFTER_ARTICLE = GOES_ON - frozenset(
    """given best rather only also over too that the this to in on with from i we it can may might could must de la le
    les i da correcta correcto correcte exacte corretta corretto korrekt y e o option choice right wrong correct
    incorrect final answer note reason reasoning justification rationale confidence""".split()
)
"""The same after "A", which may be an article."""

AFTER_PRONOUN = frozenset("is because since due which as based or remains fits explains seems".split())
"""The same after "I", which may be a pronoun."""
