"""``python -m tests.faults [--kills 100] [--seed 0]``: the fault suite, a line a series, and what it counted."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.suite import Outcome, make_checkout, prepare, run_suite


def main() -> int:
    """Exit code 1 where anything was repeated, lost, doubled or came out otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="series at once")
    chosen = parser.parse_args()
    total, begun = Outcome(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        print("undisturbed first …", flush=True)
        checkout = make_checkout(Path(folder, "checkout"))
        places = prepare(checkout)
        settings = {"kills": chosen.kills, "seed": chosen.seed, "jobs": chosen.jobs}
        for place, outcome in run_suite(checkout, places, **settings):
            asked = "endpoint" if place.endpoint else "local"
            print(f"{place.stage} ({asked}): {outcome.kills} kills, then {_verdict(outcome)}", flush=True)
            total += outcome
    minutes = (time.monotonic() - begun) / 60
    print(f"kills {total.kills}, reruns {total.reruns}, repeated calls {total.repeated}, lost rows {total.lost}, "
          f"doubled rows {total.doubled}, other differences {len(total.differences)}; {minutes:.1f} min")  # fmt: skip
    return int(bool(total.repeated or total.lost or total.doubled or total.differences))


def _verdict(outcome: Outcome) -> str:
    return "; ".join(outcome.differences) or ("repeated calls" if outcome.repeated else "as undisturbed")


sys.exit(main())
