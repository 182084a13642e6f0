"""Find the paths of each question: from the entities of its stem to the entities of its right option.

Published: all shortest paths of every pair of a question entity and an answer entity; a random selection where there
are too many; at most three of a pair are chosen. Ours: limits of hops and number, a seed, relations stay in the path,
an entity that the stem negates starts no path, and the choice is by rule or by a model that names numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question
from medrefl_utils.knowledge.graph import KnowledgeGraph
from medrefl_utils.knowledge.linking import Mention
from medrefl_utils.knowledge.paths import KnowledgePath, choose_paths, shortest_paths

PATH_TARGETS = ("gold", "options")
"""Where paths end: at entities of the right option, or of every option."""

Linker = Callable[[str], Sequence[Mention]]
"""Links the entities of a text to nodes of a graph."""


@dataclass(frozen=True)
class QuestionPaths:
    """A question, its linked entities, and the paths between them."""

    question: Question
    asked: tuple[Mention, ...]
    """entities of the stem, in the order of the text"""
    answers: Mapping[str, tuple[Mention, ...]]
    """{letter: entities of the option's text}: of the right option, or of every option (``path_targets``)"""
    pairs: int = 0
    """pairs of a question entity and an answer entity"""
    connected: int = 0
    """pairs with a path within the limits"""
    n_paths: int = 0
    """paths of all pairs, within the limits"""
    ranked: tuple[KnowledgePath, ...] = ()
    """candidates for the choice, best first"""
    chosen: tuple[KnowledgePath, ...] = ()
    """paths that the chain is written along"""
    left_out: str = ""
    """why no chain is written although there are paths: ``no_choice`` or ``too_long``"""

    @property
    def gap(self) -> str:
        """Return why no chain is written: ``no_entity``, ``no_answer_entity``, ``no_path`` or ``left_out``; else ""."""
        if self.left_out:
            return self.left_out
        if not any(not one.negated for one in self.asked):
            return "no_entity"
        if not self.answers.get(self.question.gold):
            return "no_answer_entity"
        return "" if self.chosen else "no_path"


def question_texts(questions: Iterable[Question], path_targets: str) -> list[str]:
    """Return the distinct texts that ``find_question_paths`` links: stems, and the options where paths may end."""
    return list(dict.fromkeys(text for one in questions for text in (one.stem, *_ends(one, path_targets).values())))


def _ends(question: Question, path_targets: str) -> dict[str, str]:
    """Return the options where paths may end.

    Raises:
        MedReflError: an unknown ``path_targets``.
    """
    if path_targets not in PATH_TARGETS:
        raise MedReflError(f"path_targets is {path_targets!r}, expected one of {', '.join(PATH_TARGETS)}")
    return dict(question.options) if path_targets == "options" else {question.gold: question.options[question.gold]}


def find_question_paths(
    questions: Sequence[Question],
    graph: KnowledgeGraph,
    link: Linker,
    *,
    max_hops: int,
    max_paths: int,
    paths_per_pair: int,
    max_chosen: int,
    seed: int,
    path_targets: str = "gold",
) -> list[QuestionPaths]:
    """Link each question's entities, and find and choose the paths between them by rule.

    The rule (ours): a path counts more, the more question entities have a path through its inner nodes, because their
    findings then speak for the same thing; among equals, as ``paths.choose_paths`` says (short, and few hubs).

    Args:
        questions: the questions.
        graph: the graph.
        link: links a text's entities.
        max_hops: longest path, in edges.
        max_paths: paths of a pair; of more, a seeded random selection is taken (published: 50).
        paths_per_pair: chosen paths of a pair (published: 3).
        max_chosen: chosen paths of a question; those of the best rank of each question entity come first.
        seed: of the selection. The questions around one change nothing.
        path_targets: one of ``PATH_TARGETS``. With "options" the paths do not give the right option away.

    Raises:
        MedReflError: an unknown ``path_targets``.
    """
    limits = dict(max_hops=max_hops, max_paths=max_paths)
    found = []
    for question in tqdm(questions, desc="paths", unit="question"):
        asked = tuple(link(question.stem))
        answers = {letter: tuple(link(text)) for letter, text in _ends(question, path_targets).items()}
        sources = _nodes(one for one in asked if not one.negated)
        ends = _nodes(one for mentions in answers.values() for one in mentions)
        of_pair: dict[tuple[int, int], list[KnowledgePath]] = {(a, b): [] for a in sources for b in ends if a != b}
        for path in shortest_paths(graph, sources, ends, seed=seed, **limits):
            of_pair[path.nodes[0], path.nodes[-1]].append(path)
        ranked = _ranked(graph, of_pair, paths_per_pair)
        found.append(
            QuestionPaths(
                question=question,
                asked=asked,
                answers=answers,
                pairs=len(of_pair),
                connected=sum(map(bool, of_pair.values())),
                n_paths=sum(map(len, of_pair.values())),
                ranked=tuple(ranked),
                chosen=tuple(_best_of_each_source(ranked, max_chosen)),
            )
        )
    return found


def _nodes(mentions: Iterable[Mention]) -> list[int]:
    """Return the distinct nodes of mentions, in their order."""
    return list(dict.fromkeys(one.node for one in mentions))


def _ranked(
    graph: KnowledgeGraph, of_pair: Mapping[tuple[int, int], Sequence[KnowledgePath]], per_pair: int
) -> list[KnowledgePath]:
    """Return the best ``per_pair`` paths of each pair, the best of all first."""
    passing = Counter(
        node
        for node, _ in {
            (node, source) for (source, _), paths in of_pair.items() for path in paths for node in path.nodes[1:-1]
        }
    )
    ranked: list[tuple[int, int, int, KnowledgePath]] = []
    for paths in of_pair.values():
        ordered = choose_paths(graph, list(paths), len(paths))
        # A direct edge has no inner node: nothing comes before it.
        agreement = [min((passing[node] for node in path.nodes[1:-1]), default=len(of_pair) + 1) for path in ordered]
        best = sorted(range(len(ordered)), key=lambda place: (-agreement[place], place))[:per_pair]
        ranked += [
            (-agreement[place], rank, len(ordered[place].nodes), ordered[place]) for rank, place in enumerate(best)
        ]
    return [path for *_, path in sorted(ranked, key=lambda row: row[:3])]


def _best_of_each_source(ranked: Sequence[KnowledgePath], most: int) -> list[KnowledgePath]:
    """Return at most ``most`` paths: first the best of each question entity, then the second of each, and so on."""
    seen: Counter[int] = Counter()
    rounds = []
    for place, path in enumerate(ranked):
        rounds.append((seen[path.nodes[0]], place))
        seen[path.nodes[0]] += 1
    return [ranked[place] for _, place in sorted(rounds)[:most]]
