"""What every test shares: one thread and no hub, set before anything imports torch; and the public data of others."""

import os
from pathlib import Path

os.environ.update(
    OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0", HF_HUB_OFFLINE="1", MPLBACKEND="Agg"
)

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# No deadline an example: a busy machine is no fault of the code. pytest-timeout still ends what hangs.
hypothesis.settings.register_profile("medrefl", deadline=None)
hypothesis.settings.load_profile("medrefl")

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("MEDREFL_SHARED", ROOT.parent / "shared"))
"""The folder of public benchmarks and graphs beside the checkout."""
MINUTES = (
    "test_smollm2",
    "test_chain_smollm2",
    "test_pipeline",
    "test_composition",
    "test_style_notebooks",
    "test_chain_stage",
    "test_faults",
    "test_browser",
    "test_colab",
    "test_ablation",
    "test_plan",
    "test_adapters",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: what waits, for a kernel to start or a browser, leaves its core to another."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes go first: begun last, one of them would keep a core busy while the others have done."""
    items.sort(key=lambda item: MINUTES.index(item.path.stem) if item.path.stem in MINUTES else len(MINUTES))
    for item in items:
        if item.path.stem in MINUTES:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public benchmark files beside the checkout; a test that needs it is skipped without it."""
    if not (SHARED / "benchmarks").is_dir():
        pytest.skip(f"no benchmark files in {SHARED.name}/benchmarks beside the checkout (or set MEDREFL_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def tiny_student() -> str:
    """The model folder that ships with the package."""
    return str(ROOT / "medrefl_utils" / "models" / "tiny_student")
