"""Med-REFL: from exam questions to fine-grained preference pairs, a DPO adapter and its measured gain.

Each sub-package is a room of the pipeline with its public names: ``from medrefl_utils.trees import step_values``.
``help(medrefl_utils.trees)`` says what goes into a room, what comes out, and what its names do.

- ``core``: table schemas, files of a run, errors.
- ``exam``: questions, benchmarks, prompts, reading an answer from a response.
- ``models``: loading and running models; the tiny student.
- ``trees``: growing reasoning trees; step values V, solution values S, corrections and their action values A.
- ``pairs``: preference pairs; writing and checking reflections.
- ``knowledge``: knowledge graphs, entity linking, paths between question and answer (MedReason).
- ``training``: the DPO loss, training a LoRA adapter, merging it.
- ``evaluation``: protocols, scores and their statistics, self-correction, ablation.
- ``views``: plots, explorers, tables and the report.
- ``runs``: profiles, the chain of notebooks, the command line.
"""

import logging
import os

__version__ = "0.2.0"

# Waiting OpenMP threads that spin make decoding tens of times slower if another process is busy on a small machine.
# This must be set before torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

# At import, bitsandbytes reports that an optional kernel of the hub is missing. A user need not act on that.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
