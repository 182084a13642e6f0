"""The reference's log-probabilities on disk: computed once for a pair, whoever asks."""

import pandas as pd
import pytest

from medrefl_utils.training import reference_logprobs
from medrefl_utils.training.reference_cache import pair_hash


@pytest.fixture
def ids():
    rows = [([1, 2], [3] * n, [4]) for n in (1, 2, 3, 4, 5)]
    table = pd.DataFrame(rows, columns=["prompt_ids", "chosen_ids", "rejected_ids"], index=[7, 3, 5, 1, 9])
    return table.assign(length=[2 + len(chosen) for _, chosen, _ in rows])


class Base:
    """A base whose log-probability of a side is minus its length; it counts what it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, rows):
        self.asked.append(rows.chosen_ids.str.len().tolist())
        return [-float(len(c)) for c in rows.chosen_ids], [-float(len(r)) for r in rows.rejected_ids]


def test_long_pairs_first_and_answers_in_the_pairs_order(ids, tmp_path):
    base = Base()
    logps, computed = reference_logprobs(ids, base, base="b", folder=tmp_path, batch_size=2)
    assert base.asked == [[5, 4], [3, 2], [1]] and computed == 5
    assert logps.index.tolist() == [7, 3, 5, 1, 9]
    assert logps.chosen.tolist() == [-1, -2, -3, -4, -5] and set(logps.rejected) == {-1}


def test_a_second_seed_computes_nothing_and_an_ablation_only_what_is_new(ids, tmp_path):
    reference_logprobs(ids.iloc[:3], Base(), base="b", folder=tmp_path, batch_size=2)
    second, third = Base(), Base()
    again, computed = reference_logprobs(ids.iloc[[2, 0]], second, base="b", folder=tmp_path, batch_size=2)
    assert computed == 0 and second.asked == [] and again.chosen.tolist() == [-3, -1]
    _, computed = reference_logprobs(ids, third, base="b", folder=tmp_path, batch_size=2)
    assert computed == 2 and third.asked == [[5, 4]]


def test_another_base_shares_nothing(ids, tmp_path):
    reference_logprobs(ids, Base(), base="b", folder=tmp_path, batch_size=5)
    other = Base()
    assert reference_logprobs(ids, other, base="c", folder=tmp_path, batch_size=5)[1] == 5
    assert len(list(tmp_path.glob("*.parquet"))) == 2


def test_without_a_folder_nothing_is_kept(ids, tmp_path):
    assert reference_logprobs(ids, Base(), base="b", folder=None, batch_size=5)[1] == 5
    assert not list(tmp_path.iterdir())


def test_an_interrupted_pass_goes_on_where_it_stopped(ids, tmp_path):
    class Interrupted(Base):
        def __call__(self, rows):
            if self.asked:
                raise KeyboardInterrupt
            return super().__call__(rows)

    with pytest.raises(KeyboardInterrupt):
        reference_logprobs(ids, Interrupted(), base="b", folder=tmp_path, batch_size=2, save_every=1)
    assert reference_logprobs(ids, Base(), base="b", folder=tmp_path, batch_size=2)[1] == 3


def test_the_hash_tells_where_a_side_begins():
    assert pair_hash([1, 2], [3], [4]) != pair_hash([1], [2, 3], [4]) != pair_hash([1], [2], [3, 4])
