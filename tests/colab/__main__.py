"""``python -m tests.colab`` (``make test-colab``): install, compare the versions, then run the smoke profile in small.

It runs in an environment that has the packages of runtime.txt and torch, and not yet medrefl.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
PINNED = (
    "google-auth", "ipykernel", "ipyparallel", "ipython", "notebook", "pandas", "portpicker", "requests", "tornado",
)  # fmt: skip
"""What the package google-colab requires in one version (setup.py of googlecolab/colabtools). Colab needs them."""
KEPT = (
    "numpy",
    "torch",
    "scipy",
    "matplotlib",
    "pyzmq",
    "jupyter-client",
    "jupyter-core",
    "jupyter-server",
    "traitlets",
)
"""Not required by google-colab, but loaded in the kernel, or compiled against one another."""
SMALL = (
    "shared.run=test_colab_versions", "01.n_questions=24", "03.max_reflection_pairs=4", "05.n_questions=40",
    "05.self_correction_questions=4",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return {package: version} of this environment, as a new process finds it."""
    code = "from importlib import metadata; print(*(f'{d.name}=={d.version}' for d in metadata.distributions()))"
    lines = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}


def main() -> int:
    """Return 1 if a package that Colab needs is replaced, or a stage of the chain fails."""
    before = versions()
    print(f"Python {platform.python_version()}, torch {before['torch']}, {len(before)} packages", flush=True)
    torch = f"torch=={metadata.version('torch')}"
    # The command of notebooks/colab.ipynb.
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", torch, ".[colab]"], cwd=ROOT, check=True)
    after = versions()
    replaced = {name: (old, after.get(name, "none")) for name, old in before.items() if after.get(name) != old}
    print(f"added: {' '.join(sorted(after.keys() - before.keys()))}")
    print("replaced:", *(f"{name} {old} -> {new}" for name, (old, new) in sorted(replaced.items())), sep="\n  ")
    if broken := [name for name in (*PINNED, *KEPT) if name in replaced]:
        print(f"these must stay: {', '.join(broken)}")
        return 1
    print(f"kept: {' '.join(f'{name}=={after[name]}' for name in (*PINNED, *KEPT))}", flush=True)
    overrides = [word for text in SMALL for word in ("--set", text)]
    command = [sys.executable, "-m", "medrefl_utils", "run", "params/smoke.yaml", *overrides]
    try:
        return subprocess.run(command, cwd=ROOT).returncode
    finally:
        shutil.rmtree(ROOT / "runs" / "test_colab_versions", ignore_errors=True)


sys.exit(main())
