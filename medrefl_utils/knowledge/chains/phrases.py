"""Say an edge of a graph as a sentence. Pure."""

from __future__ import annotations

from medrefl_utils.knowledge.graph import KnowledgeGraph

_CLINIC = {
    "arises from": ("disease", "{0} arises from {1}."),
    "is confirmed by": ("disease", "{0} is confirmed by {1}."),
    "is treated with": ("biological_process", "{0} is treated with {1}."),
}
"""The sentences in which the tiny student reasons (``exam.clinic``)."""
_PRIMEKG = {
    "indication": ("drug", "{0} is used to treat {1}."),
    "contraindication": ("drug", "{0} is contraindicated in {1}."),
    "off-label use": ("drug", "{0} is used off label for {1}."),
    "synergistic interaction": (None, "The drugs {0} and {1} interact."),
    "side effect": ("drug", "{0} can cause {1}."),
    "phenotype present": ("disease", "{0} presents with {1}."),
    "phenotype absent": ("disease", "{0} does not present with {1}."),
    "associated with": (None, "{0} is associated with {1}."),
    "linked to": (None, "{0} is linked to {1}."),
    "interacts with": (None, "{0} interacts with {1}."),
    "ppi": (None, "The proteins {0} and {1} interact."),
    "target": ("drug", "{0} acts on {1}."),
    "enzyme": ("drug", "{0} is metabolized by {1}."),
    "carrier": ("drug", "{0} is carried by {1}."),
    "transporter": ("drug", "{0} is transported by {1}."),
    "expression present": ("gene/protein", "{0} is expressed in {1}."),
    "expression absent": ("gene/protein", "{0} is not expressed in {1}."),
}
_HETIONET = {
    "presents": ("disease", "{0} presents with {1}."),
    "treats": ("drug", "{0} treats {1}."),
    "palliates": ("drug", "{0} relieves {1}."),
    "localizes": ("disease", "{0} occurs in {1}."),
    "resembles": (None, "{0} resembles {1}."),
    "includes": ("drug class", "{0} include {1}."),
}
PHRASES = _CLINIC | _PRIMEKG | _HETIONET
"""{display relation: (type of the node named first, sentence)}; None: the edge's direction counts, or the path's."""


def edge_sentences(graph: KnowledgeGraph, a: int, b: int) -> list[str]:
    """Return a sentence for each relation between two nodes, in the relations' order; [] where there is none.

    PrimeKG stores each edge in both directions, so there the types of the nodes decide which one is named first. A
    relation without a phrase of ours is named: "a and b are connected (relation)."
    """
    there, back = graph.directed_relations(a, b)
    sentences = []
    for relation in sorted({*there, *back}):
        subject, phrase = PHRASES.get(relation.lower(), (None, f"{{0}} and {{1}} are connected ({_braced(relation)})."))
        types = [graph.nodes["type"].iat[node] for node in (a, b)]
        turned = types[1] == subject if subject in types and types[0] != types[1] else relation not in there
        first, second = (b, a) if turned else (a, b)
        sentences.append(phrase.format(graph.names[first], graph.names[second]))
    return sentences


def _braced(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
