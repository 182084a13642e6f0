"""Arms of the ablation: draw their pairs, all arms equally many, and make the controls. Pure.

An arm is named by its kinds of pairs, joined by "+"; "reflection" means both kinds of reflection pairs. A word before
the kinds makes a control of the same pairs: "shuffled reasoning" exchanges chosen and rejected in half of them, so
there is nothing to learn; "swapped reasoning" exchanges them in all, so what is learned must harm (ours).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.pairs.pair_table import replace_sides, select_kinds
from medrefl_utils.pairs.reasoning import MAX_SHARED

CONTROLS = ("shuffled", "swapped")
"""Words before an arm's kinds: the sides of half of the pairs, or of all of them, are exchanged."""
_REFLECTION = ("reflection_mid", "reflection_post")
_REASONING, _RANDOM = "reasoning", "random_cot"


def kinds_of(arm: str) -> list[str]:
    """Return the kinds of pairs that an arm's name means."""
    named = [name.strip() for name in _split(arm)[1].split("+")]
    return [kind for name in named for kind in (_REFLECTION if name == "reflection" else (name,))]


def draw_equal_arms(
    pairs: pd.DataFrame,
    arms: Sequence[str],
    seeds: Sequence[int],
    *,
    n: int = 0,
    least: int = 1,
    lost: Mapping[str, int] | None = None,
) -> tuple[dict[int, dict[str, pd.DataFrame]], dict[str, str]]:
    """Draw the same number of pairs for each arm, under each seed; name the arms that cannot be trained.

    An arm is left out if it has fewer than ``n`` pairs (or ``least``, if ``n`` is 0), or if it holds random pairs of
    which more than ``MAX_SHARED`` are pairs of the arm "reasoning" under any seed, compared by the texts of both sides.

    Args:
        pairs: columns of PAIRS.
        arms: names of the arms.
        seeds: seeds of the draws.
        n: pairs per arm; 0 means as many as the smallest arm has that is not left out.
        least: smallest number of pairs of an arm if ``n`` is 0, at least 1.
        lost: {"<kind or step>_<reason>": count} of stage 03, to name what an arm that is left out has lost.

    Returns:
        {seed: {arm: its pairs}}, in the order of ``arms``, and {arm that is left out: why}.

    Raises:
        MedReflError: an unknown kind, or no arm is left.
    """
    pools = {arm: select_kinds(pairs, kinds_of(arm)) for arm in arms}
    wanted = n or max(least, 1)
    left_out = {
        arm: f"not trained: {len(pool)} of {wanted} pairs{_reasons(arm, lost or {})}"
        for arm, pool in pools.items()
        if len(pool) < wanted
    }
    pools = {arm: pool for arm, pool in pools.items() if arm not in left_out}
    n = n or min((len(pool) for pool in pools.values()), default=0)
    drawn = {seed: {arm: _drawn(arm, pool, n, seed) for arm, pool in pools.items()} for seed in seeds}
    for arm in [arm for arm in pools if _RANDOM in kinds_of(arm) and _REASONING in pools]:
        shared = max(shared_pairs(tables[arm], tables[_REASONING]) for tables in drawn.values())
        if shared > MAX_SHARED:
            left_out[arm] = (
                f"not trained: {shared:.0%} of its random pairs are reasoning pairs, at most {MAX_SHARED:.0%}"
            )
            drawn = {seed: {a: t for a, t in tables.items() if a != arm} for seed, tables in drawn.items()}
    if len(left_out) == len(pools.keys() | left_out.keys()):
        reasons = "; ".join(f"{arm!r} is {why}" for arm, why in left_out.items())
        raise MedReflError(
            f"ablation: no arm is left ({reasons}): lower pairs_per_arm, or make more pairs with 01_tree_rollout and"
            " 03_pair_construction"
        )
    return drawn, {arm: left_out[arm] for arm in arms if arm in left_out}


def shared_pairs(random_pairs: pd.DataFrame, reasoning_pairs: pd.DataFrame) -> float:
    """Return the share of the pairs of kind "random_cot" that are also reasoning pairs: same question, same texts.

    Args:
        random_pairs: columns of PAIRS; other kinds are ignored, and an empty table shares 0.
        reasoning_pairs: columns of PAIRS.
    """
    mine = [_texts(pair) for pair in random_pairs[random_pairs["kind"] == _RANDOM].to_dict("records")]
    theirs = {_texts(pair) for pair in reasoning_pairs.to_dict("records")}
    return sum(texts in theirs for texts in mine) / len(mine) if mine else 0.0


def exchange_sides(pairs: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """Exchange chosen and rejected, with all columns of the sides, in the rows of a mask; their ``pair_id`` changes.

    Args:
        pairs: columns of PAIRS.
        rows: booleans of shape (number of pairs,).
    """
    other = {"chosen": "rejected", "rejected": "chosen"}
    table = []
    for pair, exchange in zip(pairs.to_dict("records"), rows, strict=True):
        if exchange:
            turned = {_renamed(name, other): value for name, value in pair.items()}
            turned["judgement"] = None  # it rates the side that was chosen before
            pair = replace_sides(turned, turned["chosen"][0]["content"], turned["rejected"][0]["content"])
        table.append(pair)
    return pd.DataFrame(table, columns=pairs.columns).astype(pairs.dtypes.to_dict())


def _split(arm: str) -> tuple[str, str]:
    """Return the control's word ("" for none) and the kinds of an arm's name."""
    word, _, kinds = arm.strip().partition(" ")
    return (word, kinds) if word in CONTROLS else ("", arm)


def _drawn(arm: str, pool: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    table = pool.sample(n, random_state=seed).reset_index(drop=True)
    if (control := _split(arm)[0]) == "swapped":
        return exchange_sides(table, np.ones(n, dtype=bool))
    if control == "shuffled":
        half = np.random.default_rng(seed).permutation(n) < n // 2  # exactly half: a coin would leave a preference
        return exchange_sides(table, half)
    return table


def _renamed(name: str, other: Mapping[str, str]) -> str:
    side, _, rest = name.partition("_")
    return f"{other[side]}{'_' * bool(rest)}{rest}" if side in other else name


def _texts(pair: Mapping[str, object]) -> tuple[object, ...]:
    return (pair["question_id"], *(side[0]["content"] for side in (pair["chosen"], pair["rejected"])))


def _reasons(arm: str, lost: Mapping[str, int]) -> str:
    """Return the three most frequent reasons why this arm's pairs are missing, in brackets; "" if none is known."""
    kinds = kinds_of(arm)
    steps = [*kinds, *(["reflections"] if set(kinds) & set(_REFLECTION) else []), "judge", "thinker", "lengths"]
    mine = {name: count for name, count in lost.items() if count and any(name.startswith(f"{s}_") for s in steps)}
    most = sorted(mine.items(), key=lambda item: -item[1])[:3]
    return f" (dropped: {', '.join(f'{name} {count:,}' for name, count in most)})" if most else ""
