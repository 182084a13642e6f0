"""Link texts to a graph with a model: it lists the entities, embeddings find candidates, the model picks (published).

Published: a model lists all entities with a type. Each is compared with the names of its type; the 10 nearest above
cosine 0.7 are candidates. The same name is taken, else the first one above 0.85, else the model picks one or none.
Ours: words that the text does not have are dropped and counted; an entity of a type that the graph does not have is
compared with all names; the model picks by number; without an embedder, n-grams compare.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.core.store import write_whole
from medrefl_utils.exam import prompts
from medrefl_utils.exam.answers.thinking import split_thinking
from medrefl_utils.knowledge.graph import KnowledgeGraph
from medrefl_utils.knowledge.linking import Mention
from medrefl_utils.knowledge.names import orders, stems
from medrefl_utils.knowledge.negation import negated_spans
from medrefl_utils.knowledge.similar_names import SimilarNames
from medrefl_utils.models.asking import ReplyReader, ask_until_valid, count_faults
from medrefl_utils.models.embeddings import Embedder
from medrefl_utils.models.generators.interface import Generator

_ENTITY = re.compile(r"^\W*(?:\d+[.)]\s*)?[\"“'*`]*(?P<words>[^|]+?)[\"”'*`]*\s*\|\s*[\"“'*`]*(?P<type>[^|]*?)\W*$")
_NONE = re.compile(r"\W*(?:none|no (?:medical )?entit(?:y|ies)(?: found)?)\W*", re.IGNORECASE)
_SAME = re.compile(r"\bsame\W{0,8}(?P<n>none\b|\d{1,3}\b)", re.IGNORECASE)
_ALONE = re.compile(r"\W*(?P<n>none|\d{1,3})\W*", re.IGNORECASE)


class NameEmbeddings:
    """Finds the nodes whose names are nearest to given words, within a type.

    Args:
        graph: the graph.
        embedder: embeds names and words; None: cosines of character n-grams.
        cache: file that keeps the names' vectors, for the same embedder and names.
    """

    def __init__(self, graph: KnowledgeGraph, embedder: Embedder | None = None, *, cache: Path | None = None) -> None:
        self.graph, self.embedder = graph, embedder
        kinds = graph.nodes["type"].to_numpy()
        self.of_type = {kind: np.flatnonzero(kinds == kind) for kind in sorted(set(kinds))}
        self._grams: dict[str | None, SimilarNames] = {}
        self._vectors = None if embedder is None else _kept_vectors(graph.names, embedder, cache)

    def nearest(self, words: Sequence[str], kinds: Sequence[str | None], k: int) -> list[list[tuple[int, float]]]:
        """Return per word the ``k`` nearest nodes of its type (None: of all) with their cosines, nearest first."""
        found: list[list[tuple[int, float]]] = [[] for _ in words]
        for kind in sorted(set(kinds), key=str):
            places = [i for i, one in enumerate(kinds) if one == kind]
            nodes = np.arange(len(self.graph.names)) if kind is None else self.of_type[kind]
            for i, row in zip(places, self._nearest([words[i] for i in places], kind, nodes, k), strict=True):
                found[i] = row
        return found

    def _nearest(
        self, words: Sequence[str], kind: str | None, nodes: np.ndarray, k: int
    ) -> list[list[tuple[int, float]]]:
        if self._vectors is None:
            if kind not in self._grams:
                self._grams[kind] = SimilarNames([_normal(self.graph.names[node]) for node in nodes])
            places, cosines = self._grams[kind].nearest([_normal(one) for one in words], k)
            return [
                [(int(nodes[p]), float(c)) for p, c in zip(row, score, strict=True) if p >= 0]
                for row, score in zip(places, cosines, strict=True)
            ]
        cosine = self.embedder.embed(list(words)) @ self._vectors[nodes].T
        # Equal cosines: the node with the smaller number, so that the order does not depend on the machine.
        order = np.lexsort((np.broadcast_to(nodes, cosine.shape), -cosine.round(5)), axis=1)[:, :k]
        return [[(int(nodes[p]), float(cosine[i, p])) for p in row] for i, row in enumerate(order)]


def _normal(name: str) -> str:
    return " ".join(stems(name))


def _kept_vectors(names: Sequence[str], embedder: Embedder, cache: Path | None) -> np.ndarray:
    """Return the names' vectors, from the cache where it fits."""
    about = "\n".join([embedder.key, *names]).encode()
    if cache is not None:
        try:
            with np.load(cache) as kept:
                if kept["about"].tobytes() == about:
                    return kept["vectors"]
        except (OSError, ValueError, KeyError, EOFError):
            pass  # none yet, or not a whole file: it is made again
    distinct = list(dict.fromkeys(names))
    place = {name: i for i, name in enumerate(distinct)}
    vectors = embedder.embed(distinct)[[place[name] for name in names]]
    if cache is not None:
        data = io.BytesIO()
        np.savez(data, vectors=vectors, about=np.frombuffer(about, np.uint8))
        write_whole(cache, lambda beside: beside.write_bytes(data.getvalue()))
    return vectors


@dataclass(frozen=True)
class _Entity:
    """An entity that the model listed: the text's number, its words as the text has them, its type or None."""

    text: int
    words: str
    kind: str | None


def link_by_model(
    texts: Sequence[str],
    graph: KnowledgeGraph,
    generator: Generator,
    names: NameEmbeddings,
    *,
    sampling: Sampling,
    seed: int,
    nearest: int = 10,
    min_cosine: float = 0.7,
    sure_cosine: float = 0.85,
) -> tuple[list[list[Mention]], DropCounts]:
    """Link each text to the graph: the model lists entities, ``names`` finds candidates, the model picks one or none.

    Args:
        texts: stems, options or steps.
        graph: the graph.
        generator: the model that is asked.
        names: index of the graph's names.
        sampling: sampling of the replies (published: temperature 0).
        seed: seed of the replies.
        nearest: number of candidates (published: 10).
        min_cosine: smallest cosine of a candidate (published: 0.7).
        sure_cosine: from this cosine on, the nearest candidate is taken without asking (published: 0.85).

    Returns:
        The mentions of each text, in its order: every place where the words stand; the longest wins. Their rule is
        "same name", "nearest" or "model", their score the cosine. And the counts: faults ``entities_unreadable``
        (texts without a readable list; they have no mention) and ``entity_unreadable`` (no readable choice);
        ``entity_not_in_text``, ``entity_unknown_type`` (compared with all types), ``entity_no_candidate`` and
        ``entity_none_chosen`` count entities.

    Raises:
        MedReflError: a threshold outside 0 to 1, or ``nearest`` below 1.
    """
    if nearest < 1 or not 0 <= min_cosine <= 1 or not 0 <= sure_cosine <= 1:
        raise MedReflError(
            f"nearest is {nearest}, min_cosine {min_cosine:g}, sure_cosine {sure_cosine:g}; expected at least 1, and "
            "0 to 1"
        )
    dropped = DropCounts()
    kinds = sorted(names.of_type)
    options = dict(sampling=sampling, seed=seed)
    thinking = generator.thinking_open
    reader = _entities_of(thinking)
    listed = ask_until_valid(
        generator, [(prompts.extract_entities(text, kinds), reader) for text in texts], title="entities", **options
    )
    dropped.add(count_faults(listed, "entities", [f"text {text[:60]!r}" for text in texts]))
    entities = _checked(texts, [reply.value or [] for reply in listed], kinds, dropped)
    near = names.nearest([one.words for one in entities], [one.kind for one in entities], nearest)
    candidates = [[(node, cosine) for node, cosine in row if cosine >= min_cosine] for row in near]
    dropped["entity_no_candidate"] = sum(not row for row in candidates)
    found: dict[_Entity, tuple[int, float, str]] = {}
    unsure: list[int] = []
    for place, (entity, row) in enumerate(zip(entities, candidates, strict=True)):
        same = [(node, cosine) for node, cosine in row if stems(entity.words) in set(orders(graph.names[node]))]
        if same:
            found[entity] = (*same[0], "same name")
        elif row and row[0][1] >= sure_cosine:
            found[entity] = (*row[0], "nearest")
        elif row:
            unsure.append(place)
    asked = []
    for place in unsure:
        shown = [graph.names[node] for node, _ in candidates[place]]
        message = prompts.choose_entity(texts[entities[place].text], entities[place].words, shown)
        asked.append((message, _choice_of(len(shown), thinking)))
    chosen = ask_until_valid(generator, asked, title="entity choice", **options)
    dropped.add(count_faults(chosen, "entity", [f"entity {entities[place].words!r}" for place in unsure]))
    for place, reply in zip(unsure, chosen, strict=True):
        if reply.value:
            found[entities[place]] = (*candidates[place][reply.value - 1], "model")
    dropped["entity_none_chosen"] = sum(reply.value == 0 for reply in chosen)
    mentions: list[list[Mention]] = [[] for _ in texts]
    for number, text in enumerate(texts):
        mentions[number] = _mentions(text, {e.words: hit for e, hit in found.items() if e.text == number})
    return mentions, dropped


def _entities_of(thinking_open: bool) -> ReplyReader[list[tuple[str, str]]]:
    """Make a reader of lines "words | type"; other lines are passed over, and "none" is an empty list."""

    def read(reply: Continuation) -> tuple[list[tuple[str, str]] | None, str]:
        _, told = split_thinking(reply.text, thinking_open=thinking_open)
        lines = [line.strip() for line in told.splitlines() if line.strip()]
        rows = [(m["words"].strip(), m["type"].strip()) for line in lines if (m := _ENTITY.match(line))]
        rows = [row for row in rows if row != ("words", "type")]
        if rows or any(_NONE.fullmatch(line) for line in lines):
            return rows, ""
        return None, "unreadable"

    return read


def _choice_of(n: int, thinking_open: bool) -> ReplyReader[int]:
    """Make a reader of "Same: n", 1 to ``n``, or "Same: none" (0); the last one counts."""

    def read(reply: Continuation) -> tuple[int | None, str]:
        _, told = split_thinking(reply.text, thinking_open=thinking_open)
        found = [m["n"] for m in _SAME.finditer(told)] or [m["n"] for m in [_ALONE.fullmatch(told.strip())] if m]
        if not found:
            return None, "unreadable"
        number = 0 if found[-1].lower() == "none" else int(found[-1])
        if found[-1] == "0" or number > n:
            return None, "unreadable"
        return number, ""

    return read


def _checked(
    texts: Sequence[str], listed: Sequence[Sequence[tuple[str, str]]], kinds: Sequence[str], dropped: DropCounts
) -> list[_Entity]:
    """Return the listed entities that their text has, without repetitions, and count the others."""
    by_name: Mapping[str, str] = {kind.casefold(): kind for kind in kinds}
    dropped["entity_not_in_text"] = dropped["entity_unknown_type"] = 0
    entities: dict[tuple[int, str], _Entity] = {}
    for number, (text, rows) in enumerate(zip(texts, listed, strict=True)):
        for words, kind in rows:
            if not _places(text, words):
                dropped["entity_not_in_text"] += 1
                continue
            known = by_name.get(kind.casefold())
            dropped["entity_unknown_type"] += known is None
            entities.setdefault((number, words.casefold()), _Entity(number, words, known))
    return list(entities.values())


def _places(text: str, words: str) -> list[tuple[int, int]]:
    """Return where the words stand in the text as whole words; case and the length of spaces make no difference."""
    pattern = r"\s+".join(map(re.escape, words.split()))
    return [m.span() for m in re.finditer(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE)] if pattern else []


def _mentions(text: str, found: Mapping[str, tuple[int, float, str]]) -> list[Mention]:
    denied = negated_spans(text)
    covered = bytearray(len(text))
    mentions = []
    for words, (node, score, rule) in sorted(found.items(), key=lambda item: (-len(item[0]), item[0])):
        for start, end in _places(text, words):
            if not any(covered[start:end]):
                covered[start:end] = b"\1" * (end - start)
                negated = any(a <= start and end <= b for a, b in denied)
                mentions.append(Mention(start, end, text[start:end], node, round(score, 4), rule, negated))
    return sorted(mentions, key=lambda mention: mention.start)
