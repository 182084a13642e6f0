"""``python -m tests.faults [--kills 100] [--seed 0]``: run the fault suite, one line per series, then the counts."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.suite import Outcome, make_checkout, prepare, run_suite


def main() -> int:
    """Return 1 if a call was repeated, a row was lost or duplicated, or an artifact differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="kills in all series together")
    parser.add_argument("--seed", type=int, default=0, help="draws moments and victims of the kills")
    parser.add_argument("--jobs", type=int, default=2, help="series that run at the same time")
    chosen = parser.parse_args()
    total, started = Outcome(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        print("running every stage undisturbed first …", flush=True)
        checkout = make_checkout(Path(folder, "checkout"))
        places = prepare(checkout)
        settings = {"kills": chosen.kills, "seed": chosen.seed, "jobs": chosen.jobs}
        for place, outcome in run_suite(checkout, places, **settings):
            generator = "endpoint" if place.endpoint else "local"
            print(f"{place.stage} ({generator}): {outcome.kills} kills, then {_verdict(outcome)}", flush=True)
            total += outcome
    minutes = (time.monotonic() - started) / 60
    print(f"kills {total.kills}, reruns {total.reruns}, repeated calls {total.repeated}, lost rows {total.lost}, "
          f"duplicated rows {total.doubled}, differences {len(total.differences)}; {minutes:.1f} min")  # fmt: skip
    return int(bool(total.repeated or total.lost or total.doubled or total.differences))


def _verdict(outcome: Outcome) -> str:
    return "; ".join(outcome.differences) or ("repeated calls" if outcome.repeated else "the same artifacts")


sys.exit(main())
