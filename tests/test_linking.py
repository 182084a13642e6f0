"""Linking finds the nodes that a text names, and no others: by hand, on the clinic, and on labelled real vignettes."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medrefl_utils.core import MedReflError
from medrefl_utils.exam import clinic
from medrefl_utils.knowledge import KnowledgeGraph, Linker, link_entities, read_graph, write_clinic_graph
from medrefl_utils.knowledge.negation import negated_spans
from medrefl_utils.knowledge.similar_names import SimilarNames
from tests.conftest import SHARED

COLUMNS = ("id", "type", "name", "synonyms")
LABELS = Path(__file__).parent / "data/hetionet_mentions.jsonl"
PIECES = ["no ", "denies ", "chest", " ", "pain", "\n", ", ", "hypertensoin", "-", "B", "12", "vitamin", "’s", "Crohn",
          " disease", "heart ", "failure", "ﬁ", "é", "\ud83d\ude00", "x" * 300, ". ", "absent "]  # fmt: skip
real = pytest.mark.skipif(not (SHARED / "knowledge").is_dir(), reason="MEDREFL_SHARED has no knowledge graph")

NAMES = {
    "disease": "hypertension|Crohn's disease|heart failure|obesity|hepatitis B|type 2 diabetes mellitus|anemia|"
    "multiple sclerosis|oedema",
    "effect/phenotype": "Abdomen, Acute|Chest Pain|Pain|Fever|Hypotension|Dyspnea|Headache|Rash|Obesity|Weight Loss|"
    "Purpura, Thrombocytopenic, Idiopathic|Cough|Reticulocytosis",
    "drug": "Acetylsalicylic acid|Atorvastatin|Vitamin B 12|Hydralazine|Water|Lead|Nitrates|L-Alanine",
    "anatomy": "heart|neck|muscle of neck|blood|skin of body|sclera|spinal cord",
    "gene/protein": "CAT|REST|TNF",
}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeGraph:
    """Every node is joined to the first disease; the phenotype obesity has a second neighbour."""
    nodes = [(name, kind) for kind, names in NAMES.items() for name in names.split("|")]
    edges = [(node, nodes[0]) for node in nodes[1:]]
    edges.append((("Obesity", "effect/phenotype"), ("Cough", "effect/phenotype")))
    file = tmp_path_factory.mktemp("graph") / "kg.csv"
    with open(file, "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["display_relation", *(f"{side}_{name}" for side in "xy" for name in COLUMNS)])
        for edge in edges:
            cells = [(name, kind, name, "tumor necrosis factor" if name == "TNF" else "") for name, kind in edge]
            writer.writerow(["r", *cells[0], *cells[1]])
    return read_graph(file)


def found(text: str, graph: KnowledgeGraph, **options) -> list[tuple[str, str, str]]:
    mentions = link_entities(text, graph, **options)
    assert all(text[m.start : m.end] == m.text for m in mentions)
    return [(m.text, graph.names[m.node], m.rule) for m in mentions]


def test_names_in_other_forms(graph: KnowledgeGraph) -> None:
    assert found("Crohn disease, CROHN’S DISEASES.", graph) == [
        ("Crohn disease", "Crohn's disease", "exact"),
        ("CROHN’S DISEASES", "Crohn's disease", "exact"),
    ]
    assert found("headaches and edema; anaemia", graph) == [
        ("headaches", "Headache", "exact"), ("edema", "oedema", "exact"), ("anaemia", "anemia", "exact")]  # fmt: skip
    assert found("an acute abdomen, idiopathic thrombocytopenic purpura, vitamin B12", graph) == [
        ("acute abdomen", "Abdomen, Acute", "word order"),
        ("idiopathic thrombocytopenic purpura", "Purpura, Thrombocytopenic, Idiopathic", "word order"),
        ("vitamin B12", "Vitamin B 12", "exact"),
    ]
    assert found("diabetes mellitus type 2, pain in her chest, neck muscles", graph) == [
        ("diabetes mellitus type 2", "type 2 diabetes mellitus", "word order"),
        ("pain in her chest", "Chest Pain", "word order"),
        ("neck muscles", "muscle of neck", "word order"),
    ]


def test_synonyms_of_the_graph_and_of_the_vocabulary(graph: KnowledgeGraph) -> None:
    assert found("short of breath on aspirin; skin; tumour necrosis factors", graph) == [
        ("short of breath", "Dyspnea", "synonym"),
        ("aspirin", "Acetylsalicylic acid", "synonym"),
        ("skin", "skin of body", "synonym"),
        ("tumour necrosis factors", "TNF", "synonym"),
    ]


def test_the_longest_name_wins_and_nothing_is_found_inside_a_longer_term(graph: KnowledgeGraph) -> None:
    assert [name for _, name, _ in found("chest pain and heart failure", graph)] == ["Chest Pain", "heart failure"]
    assert found("blood pressure, heart rate, heart disease, surgical neck, skin turgor", graph) == []
    assert found("blood in the heart. Pressure", graph) == [("blood", "blood", "exact"), ("heart", "heart", "exact")]
    # A full stop, a comma and a line break end a name.
    assert found("He has pain. Chest clear. Spinal, cord. 40 U/L\nAlanine", graph) == [("pain", "Pain", "exact")]


def test_common_words_and_symbols_in_small_letters_are_no_mentions(graph: KnowledgeGraph) -> None:
    assert found("He took a rest with his cat, and drank water; this may lead to ms", graph) == []
    assert found("CAT and TNF rise in MS", graph) == [
        ("CAT", "CAT", "exact"), ("TNF", "TNF", "exact"), ("MS", "multiple sclerosis", "synonym")]  # fmt: skip


def test_one_name_of_two_nodes_and_types(graph: KnowledgeGraph) -> None:
    (mention,) = link_entities("obesity", graph)
    assert graph.keys[mention.node] == ("effect/phenotype", "Obesity")  # it has more neighbours
    (mention,) = link_entities("obesity", graph, types=["disease", "drug"])
    assert graph.keys[mention.node] == ("disease", "obesity")
    with pytest.raises(MedReflError, match="no node of type 'pathway'; it has anatomy, disease, drug"):
        link_entities("obesity", graph, types=["pathway"])


def test_misspellings_and_what_only_looks_like_one(graph: KnowledgeGraph) -> None:
    (mention,) = link_entities("He takes atorvastain.", graph)
    assert (graph.names[mention.node], mention.rule) == ("Atorvastatin", "n-grams") and 0.4 <= mention.score < 1
    assert found("hypertensoin, dyspnoea, acetylsalicilic acid", graph) == [
        ("hypertensoin", "hypertension", "n-grams"),
        ("dyspnoea", "Dyspnea", "exact"),
        ("acetylsalicilic acid", "Acetylsalicylic acid", "n-grams"),
    ]
    # Other drugs and findings, an adjective, a cell, and another type of hepatitis.
    assert found("hydroxyzine, pitavastatin, nitrites, hypotensive, scleral, reticulocyte, hepatitis C", graph) == []
    assert Linker(graph, min_similarity=2).link("He takes atorvastain.") == []


def test_similar_names_agree_with_the_definition() -> None:
    names = ["chest pain", "back pain", "pain", "fever", "chest tightness"]
    index = SimilarNames(names)
    places, cosines = index.nearest(["chest pains", "fever", "xyzzy", ""], 3)
    assert places[0, 0] == 0 and places[1].tolist() == [3, -1, -1] and cosines[1, 0] == pytest.approx(1)
    assert places[2:].tolist() == [[-1] * 3] * 2
    # By hand: cosine of the TF-IDF weighted counts of 3-grams, with a space before and after.
    import math

    def grams(text: str) -> Counter:
        return Counter(f" {text} "[i : i + 3] for i in range(len(text)))

    frequency = Counter(gram for name in names for gram in grams(name))

    def vector(text: str) -> dict[str, float]:
        return {g: n * (math.log((1 + len(names)) / (1 + frequency[g])) + 1) for g, n in grams(text).items()}

    one, two = vector("chest pains"), vector("chest pain")
    dot = sum(one[g] * two.get(g, 0) for g in one)
    norm = math.sqrt(sum(v * v for v in one.values()) * sum(v * v for v in two.values()))
    assert cosines[0, 0] == pytest.approx(dot / norm)


NEGATED = [
    ("No [fever], [chills] or [weight loss], but a cough.", True),
    ("She denies [chest pain], and has had a {rash} since.", True),
    ("He denies [chest pain] or [dyspnea]. {Fever} began today.", True),
    ("There is a {rash} without [itching].", True),
    ("A {cough} persists; [edema] was not seen.", True),
    ("{Fever} did not improve with acetaminophen.", False),
    ("There was no change in his {cough}.", False),
    ("Not only {fever} but also {rash}.", False),
    ("She was negative for [rash].", True),
    ("No relief of {pain} with rest.", False),
    ("His {headache} resolved. [Fever] was absent.", True),
    ("Neither [fever] nor [rash] was found.", True),
    ("He never had [chest pain], although he had {dyspnea}.", True),
    ("She has no history of [hypertension] and takes {aspirin}.", True),
    ("She hasn’t had any [fever].", True),
    ("Absence of [rash] is noted.", True),
]


@pytest.mark.parametrize(("marked", "some"), NEGATED, ids=[text for text, _ in NEGATED])
def test_denied_findings(marked: str, some: bool) -> None:
    """[denied] and {not denied}."""
    text, places = "", []
    for c in marked:
        if c in "[{":
            places.append((len(text), c))
        elif c in "]}":
            start, kind = places.pop()
            places.insert(0, (start, len(text), kind))
        else:
            text += c
    spans = negated_spans(text)
    for start, end, kind in places:
        denied = any(a <= start and end <= b for a, b in spans)
        assert denied == (kind == "["), text[start:end]
    assert some == any(kind == "[" for *_, kind in places)


def test_denied_mentions_are_marked(graph: KnowledgeGraph) -> None:
    mentions = link_entities("He has a cough and denies fever, chest pain, or weight loss.", graph)
    assert [(m.text, m.negated) for m in mentions] == [
        ("cough", False), ("fever", True), ("chest pain", True), ("weight loss", True)]  # fmt: skip


def test_on_the_clinic_every_finding_and_option_is_found_and_nothing_else(tmp_path: Path) -> None:
    graph = read_graph(write_clinic_graph(tmp_path / "clinic.csv", clinic.world()))
    right = predicted = wanted = 0
    for case in clinic.make_cases(300, seed=11, split="test"):
        for text, truth in [(case.question.stem, case.findings), *((o, (o,)) for o in case.question.options.values())]:
            names = [graph.names[m.node] for m in link_entities(text, graph)]
            right += len(set(names) & set(truth))
            predicted, wanted = predicted + len(names), wanted + len(truth)
    assert (right, predicted) == (wanted, wanted)  # precision and recall 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=25))
def test_mentions_of_any_text_are_its_parts_in_order_and_do_not_overlap(graph: KnowledgeGraph, pieces) -> None:
    text = "".join(pieces)
    mentions = link_entities(text, graph)
    assert all(
        text[m.start : m.end] == m.text and 0 <= m.node < len(graph.nodes) and 0 < m.score <= 1 for m in mentions
    )
    assert all(a.end <= b.start for a, b in zip(mentions, mentions[1:], strict=False))
    assert mentions == link_entities(text, graph)


@pytest.fixture(scope="module")
def hetionet() -> KnowledgeGraph:
    return read_graph(SHARED / "knowledge/hetionet_sample.csv")


def stems(file: str) -> list[str]:
    lines = (SHARED / "benchmarks" / file).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["question"] for line in lines]


def compare(graph: KnowledgeGraph, part: str) -> Counter:
    """Compare the linker with the labels of a part: a mention is right if it overlaps a label with its node.

    What overlaps a label that is optional counts neither way.
    """
    texts = {file: stems(file) for file in ("medqa_usmle_4op_test.jsonl", "medbullets_op4.jsonl")}
    count: Counter = Counter()
    for line in LABELS.read_text().splitlines():
        row = json.loads(line)
        text = texts[row["file"]][row["row"]]
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == row["sha256"]
        if row["part"] != part:
            continue
        left = {i: label for i, label in enumerate(row["mentions"])}
        for mention in link_entities(text, graph):
            near = [i for i, m in enumerate(row["mentions"]) if m["start"] < mention.end and mention.start < m["end"]]
            hits = [i for i in near if list(graph.keys[mention.node]) in row["mentions"][i]["nodes"] and i in left]
            required = [i for i in hits if not row["mentions"][i].get("optional")]
            if required:
                label = left.pop(required[0])
                count["right"] += 1
                count["negation"] += mention.negated == label.get("negated", False)
            elif not any(row["mentions"][i].get("optional") for i in near):
                count["wrong"] += 1
        count["missed"] += sum(not label.get("optional") for label in left.values())
        count["vignettes"] += 1
    return count


@real
@pytest.mark.parametrize("part", ["tuning", "held out", "fresh"])
def test_precision_and_recall_on_labelled_real_vignettes(part: str, hetionet: KnowledgeGraph) -> None:
    """"held out" was not looked at while the rules were tuned; "fresh" was labelled after that.

    Both have the same author as the synonyms, who read the vignettes of "held out" to label them. So "fresh" is the
    fairest of the three: at its first run, it had precision 0.966 (85 of 88) and recall 0.988 (85 of 86).
    """  # fmt: skip
    count = compare(hetionet, part)
    precision = count["right"] / (count["right"] + count["wrong"])
    recall = count["right"] / (count["right"] + count["missed"])
    print(f"{part}: precision {precision:.3f}, recall {recall:.3f}, {dict(count)}")
    assert count["right"] + count["missed"] >= 70
    assert precision >= 0.95 and recall >= 0.95 and count["negation"] >= 0.95 * count["right"]


def test_the_labels_are_150_mentions_and_quote_no_question() -> None:
    rows = [json.loads(line) for line in LABELS.read_text().splitlines()]
    labels = [label for row in rows for label in row["mentions"] if not label.get("optional")]
    assert len(rows) == 42 and len({(row["file"], row["row"]) for row in rows}) == 42 and len(labels) >= 150
    assert {key for row in rows for key in row} == {"file", "row", "sha256", "part", "mentions"}
    assert {key for label in labels for key in label} <= {"start", "end", "nodes", "negated", "optional"}


@real
def test_linking_of_200_real_vignettes(hetionet: KnowledgeGraph) -> None:
    texts = [*stems("medqa_usmle_4op_test.jsonl")[:100], *stems("medbullets_op4.jsonl")[:100]]
    linker = Linker(hetionet)
    mentions = [linker.link(text) for text in texts]
    linked = sum(1 for found in mentions if found)
    rules = Counter(m.rule for found in mentions for m in found)
    n = sum(map(len, mentions))
    print(f"{linked} of 200 vignettes have a mention; {n} mentions; {dict(rules)}")
    assert linked >= 180 and n >= 800
    for text, found in zip(texts, mentions, strict=True):
        assert all(text[m.start : m.end] == m.text for m in found)
        assert all(a.end <= b.start for a, b in zip(found, found[1:], strict=False))
