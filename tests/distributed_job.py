"""``torchrun ... -m tests.distributed_job STUDENT FOLDER``: a small training, its log written by the first process."""

import os
import sys
from pathlib import Path

from medrefl_utils.training import DpoSettings, train_dpo
from tests.test_dpo import PAIRS_24

if __name__ == "__main__":
    folder = Path(sys.argv[2])
    dpo = DpoSettings(
        learning_rate=1e-3, warmup_steps=1, batch_size=2, gradient_accumulation=4, max_length=1024, quantization="none"
    )
    log = train_dpo(PAIRS_24, sys.argv[1], folder, dpo=dpo, seed=0)
    if os.environ.get("RANK", "0") == "0":
        log.to_json(folder / "log.json")
