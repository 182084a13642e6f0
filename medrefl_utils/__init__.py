"""Med-REFL: from exam questions to fine-grained preference pairs, an adapter and its measured gain."""

import logging
import os

__version__ = "0.2.0"

# Spinning OpenMP threads make decoding tens of times slower beside any other busy process on a small machine; this
# must stand before torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

# bitsandbytes says at its import that an optional kernel of the hub is missing: nothing that a user should mend.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
