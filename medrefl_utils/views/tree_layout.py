"""Where the steps of a drawn tree stand: a column per depth, a line per leaf or per step."""

from __future__ import annotations


def places(children: dict[int, list[int]], root: int) -> dict[int, tuple[int, float]]:
    """Return {node: (depth, height)}: one line per leaf; an inner step is at the mean height of its children."""
    place: dict[int, tuple[int, float]] = {}
    lines = 0
    stack = [(root, 0, False)]
    while stack:
        node, depth, done = stack.pop()
        below = children[node]
        if not below:
            place[node] = (depth, lines)
            lines += 1
        elif done:
            place[node] = (depth, (place[below[0]][1] + place[below[-1]][1]) / 2)
        else:
            stack.append((node, depth, True))
            stack.extend((child, depth + 1, False) for child in reversed(below))
    return place


def step_places(children: dict[int, list[int]], root: int) -> dict[int, tuple[int, int]]:
    """Return {node: (depth, line)}: one line per step, followed by its children."""
    place: dict[int, tuple[int, int]] = {}
    stack = [(root, 0)]
    while stack:
        node, depth = stack.pop()
        place[node] = (depth, len(place))
        stack.extend((child, depth + 1) for child in reversed(children[node]))
    return place
