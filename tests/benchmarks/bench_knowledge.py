"""Measure reading a graph of PrimeKG's size, and its shortest paths, beside networkx on the same file and pairs.

The graph is generated: 129,000 nodes in PrimeKG's shares of types, 8.1 million rows (each edge in both directions), and
degrees as uneven as those of a real graph (hubs with thousands of neighbours). Each measurement has its own process.
Times are CPU times, of all threads together: other processes on the machine change them less. networkx is stopped after
four minutes, and a graph of a tenth of the size shows both to their end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from tests.benchmarks.measure import Measurement

NODES, EDGES = 129_000, 4_050_000
PAIRS, PEER_PAIRS = 100, 20  # networkx takes seconds for a pair, so it gets the first 20 only
LIMIT = 240.0  # seconds for networkx at one size, so that the benchmark ends within ten minutes
MAX_HOPS, MAX_PATHS = 4, 50
SHARES = {
    **{"biological_process": 0.22, "gene/protein": 0.21, "disease": 0.13, "effect/phenotype": 0.12, "anatomy": 0.11},
    **{"molecular_function": 0.09, "drug": 0.06, "cellular_component": 0.03, "pathway": 0.02, "exposure": 0.01},
}
RELATIONS = (
    *("associated with", "ppi", "indication", "contraindication", "off-label use", "target", "enzyme", "carrier"),
    *("transporter", "side effect", "phenotype present", "phenotype absent", "parent-child", "interacts with"),
    *("linked to", "expression present", "expression absent", "synergistic interaction"),
)

_OURS = """
import json, sys, time
from pathlib import Path
from medrefl_utils.knowledge import read_graph, shortest_paths
from tests.benchmarks.bench_knowledge import MAX_HOPS, MAX_PATHS, pairs
from tests.benchmarks.measure import own_peak
wall, start = time.perf_counter(), time.process_time()
graph = read_graph(sys.argv[1], cache=Path(sys.argv[2]))
loaded, wall = time.process_time() - start, time.perf_counter() - wall
peak = own_peak()
seconds, lengths, n = [], [], []
number = dict(zip(graph.nodes["id"], graph.nodes.index))
for a, b in pairs(len(graph.nodes), int(sys.argv[3])):
    a, b = number[str(a)], number[str(b)]
    start = time.process_time()
    found = shortest_paths(graph, [a], [b], max_hops=MAX_HOPS, max_paths=MAX_PATHS, seed=0)
    seconds.append(time.process_time() - start)
    lengths.append(len(found[0].nodes) - 1 if found else 0)
    n.append(len(found))
print(json.dumps({"loaded": loaded, "wall": wall, "peak": peak, "seconds": seconds, "lengths": lengths, "n": n}))
"""
_NETWORKX = """
import itertools, json, sys, time
import networkx, pandas
from tests.benchmarks.bench_knowledge import MAX_PATHS, pairs
from tests.benchmarks.measure import own_peak
start = time.process_time()
table = pandas.read_csv(sys.argv[1], low_memory=False, usecols=["x_id", "y_id", "display_relation"], dtype=str)
graph = networkx.from_pandas_edgelist(table, "x_id", "y_id", edge_attr="display_relation")
loaded = time.process_time() - start
peak = own_peak()
print(json.dumps({"loaded": loaded, "peak": peak}), flush=True)
for a, b in pairs(int(sys.argv[2]), int(sys.argv[3])):
    start = time.process_time()
    found = list(itertools.islice(networkx.all_shortest_paths(graph, str(a), str(b)), MAX_PATHS))
    seconds = time.process_time() - start
    print(json.dumps({"seconds": seconds, "length": len(found[0]) - 1 if found else 0, "n": len(found)}), flush=True)
"""


def write_large_graph(path: Path, nodes: int = NODES, edges: int = EDGES) -> Path:
    """Write a generated graph as a CSV in PrimeKG's columns, each edge in both directions; return its path."""
    rng = np.random.default_rng(0)
    types = rng.choice(list(SHARES), nodes, p=list(SHARES.values()))
    letters = (rng.choice(list(group), 400) for group in ("bdfgklmnprstvz", "aeiou", "lmnrst"))
    syllables = np.array(["".join(three) for three in zip(*letters, strict=True)])
    parts = syllables[rng.integers(0, len(syllables), (nodes, 8))]
    names = ["".join(p[:3]) + " " + "".join(p[3:6]) + f" {p[6]}{i}" for i, p in enumerate(parts)]
    # The weight of a node falls with its rank, as in a network with hubs. A chain joins all nodes.
    weight = (np.arange(nodes) + 20.0) ** -0.6
    ends = rng.permutation(nodes)[rng.choice(nodes, (2, edges), p=weight / weight.sum())]
    ends[0, : nodes - 1], ends[1, : nodes - 1] = np.arange(nodes - 1), np.arange(1, nodes)
    loops = ends[0] == ends[1]
    ends[1, loops] = (ends[1, loops] + 1) % nodes
    relation = rng.integers(0, len(RELATIONS), edges)
    x, y, relation = np.r_[ends[0], ends[1]], np.r_[ends[1], ends[0]], np.r_[relation, relation]
    order = rng.permutation(len(x))

    def column(codes: np.ndarray, values: list[str]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(codes[order].astype(np.int32)), values).cast(pa.string())

    table = {"relation": column(relation, list(RELATIONS)), "display_relation": column(relation, list(RELATIONS))}
    for side, end in (("x", x), ("y", y)):
        table[f"{side}_index"] = pa.array(end[order])
        table[f"{side}_id"] = column(end, [str(i) for i in range(nodes)])
        table[f"{side}_type"] = column(end, types.tolist())
        table[f"{side}_name"] = column(end, names)
        table[f"{side}_source"] = column(end % 5, ["NCBI", "MONDO", "HPO", "GO", "DrugBank"])
    pacsv.write_csv(pa.table(table), path, pacsv.WriteOptions(quoting_style="needed"))
    return path


def pairs(nodes: int, n: int) -> Iterator[tuple[int, int]]:
    """Yield n pairs of different nodes."""
    for a, b in np.random.default_rng(1).integers(0, nodes, (n, 2)).tolist():
        yield a, b if a != b else (b + 1) % nodes


def _alone(code: str, *arguments: object, limit: float | None = None) -> list[dict]:
    """Return the lines that the code prints, each a JSON object, up to the end or to ``limit`` seconds."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired as error:
        printed = (error.stdout or b"").decode()
        return [json.loads(line) for line in printed.splitlines(keepends=True) if line.endswith("\n")]
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def main(
    sizes: Sequence[tuple[int, int]] = ((NODES, EDGES), (NODES // 10, EDGES // 10)),
    n_pairs: int = PAIRS,
    peer_pairs: int = PEER_PAIRS,
    limit: float = LIMIT,
) -> Iterator[Measurement]:
    """Yield time and memory of reading, from the file and from the cache, and the time of a pair's paths.

    For each size (nodes, edges). At PrimeKG's size networkx is stopped after ``limit`` seconds; at a tenth both end.
    """
    for nodes, edges in sizes:
        yield from _measured(nodes, edges, n_pairs, peer_pairs, limit)


def _measured(nodes: int, edges: int, n_pairs: int, peer_pairs: int, limit: float) -> Iterator[Measurement]:
    with tempfile.TemporaryDirectory() as folder:
        file = write_large_graph(Path(folder) / "kg.csv", nodes, edges)
        size = file.stat().st_size / 2**20
        cache = Path(folder) / "kg.npz"
        [first], [again] = (_alone(_OURS, file, cache, n_pairs) for _ in range(2))
        read, *theirs = _alone(_NETWORKX, file, nodes, peer_pairs, limit=limit) or [None]
    assert first["n"] == again["n"]
    near = [i for i, pair in enumerate(theirs) if pair["length"] <= MAX_HOPS]
    assert [first["lengths"][i] for i in near] == [theirs[i]["length"] for i in near]
    assert [first["n"][i] for i in near] == [theirs[i]["n"] for i in near]
    size_of = f"{nodes:,} nodes: "
    details = {"nodes": nodes, "rows": 2 * edges, "file_mib": round(size)}
    goal = details | {"meaning": "the peer is the limit"}
    beside = details | {"peer": "networkx", "stopped_after_seconds": limit}
    yield Measurement(
        size_of + "read CSV", first["loaded"], 40.0, goal=1, details=goal | {"wall_seconds": first["wall"]}
    )
    peer, late = (limit, True) if read is None else (read["loaded"], False)
    yield Measurement(
        size_of + "read CSV, beside networkx", first["loaded"], peer, goal=1, peer_at_least=late, details=beside
    )
    yield Measurement(size_of + "peak memory of reading", first["peak"], 3.0, goal=1, unit="GiB", details=goal)
    if read is not None:  # of a small graph the libraries need more than the graph: reported, without a goal
        full = int(nodes >= NODES)
        yield Measurement(
            size_of + "peak memory, beside networkx", first["peak"], read["peak"], goal=full, unit="GiB", details=beside
        )
    yield Measurement(size_of + "read the cache", again["loaded"], 3.0, goal=1, details=goal)
    spread = {
        "pairs": n_pairs,
        "max_hops": MAX_HOPS,
        "max_paths": MAX_PATHS,
        "slowest_ms": 1e3 * max(again["seconds"]),
        "lengths": {str(k): again["lengths"].count(k) for k in sorted(set(again["lengths"]))},
    }
    ours = 1e3 * float(np.median(again["seconds"]))
    yield Measurement(size_of + "paths of a pair, median", ours, 20.0, goal=1, unit="ms", details=spread | goal)
    if theirs:
        same = 1e3 * float(np.median(again["seconds"][: len(theirs)]))
        peer = 1e3 * float(np.median([pair["seconds"] for pair in theirs]))
        case = size_of + f"paths of the first {len(theirs)} pairs, beside networkx"
        yield Measurement(case, same, peer, goal=1, unit="ms", details=spread | beside)
