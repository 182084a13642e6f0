"""Execute one notebook with papermill in a kernel of this Python interpreter, and show its progress."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import psutil

from medrefl_utils.core.errors import MedReflError

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
CHAIN = "MEDREFL_CHAIN"
"""Environment variable of a kernel in a chain: the run's folder. ``make_missing_inputs`` then starts no other chain."""
HEARTBEAT = 30.0  # seconds between two prints of a progress bar if the output is not a terminal


class StageFailed(Exception):
    """A notebook failed: ``name`` and ``message`` of its error, the relevant ``frames``, and the executed notebook."""

    def __init__(self, name: str, message: str, frames: Sequence[str], notebook: Path) -> None:
        super().__init__(f"{name}: {message}")
        self.name, self.message, self.frames, self.notebook = name, message, list(frames), notebook


class Progress:
    """Print what a notebook writes to stderr, indented: complete lines at once, a progress bar in place.

    If the output is not a terminal (a CI log), print the final state of a bar, and a running bar every ``HEARTBEAT``
    seconds.
    """

    def __init__(self, file: TextIO) -> None:
        self.file, self.live = file, file.isatty()
        self.width = min(shutil.get_terminal_size((130, 24)).columns, 130) - 5
        self.line, self.returned, self.drawn, self.shown = "", False, False, time.monotonic()

    def write(self, text: str) -> None:
        """Print the notebook's text; terminal control codes are removed."""
        for piece in re.split(r"([\r\n])", CONTROL.sub("", text)):
            if piece == "\n":
                self._end()
            elif piece == "\r":
                self.returned = True
            elif piece:
                self.line, self.returned = piece if self.returned else self.line + piece, False
        if self.live and self.line:
            self.file.write(f"\r\x1b[2K    {self.line[: self.width]}")
            self.drawn = True
        elif self.line.strip() and time.monotonic() - self.shown > HEARTBEAT:
            self.file.write(f"    {self.line.rstrip()}\n")
            self.shown = time.monotonic()
        self.file.flush()

    def flush(self) -> None:
        """Do nothing: ``write`` flushes."""

    def close(self) -> None:
        """Print the last state of an unfinished bar as its own line."""
        self._end()
        self.file.flush()

    def _end(self) -> None:
        erase = "\r\x1b[2K" if self.drawn else ""
        self.file.write(f"{erase}    {self.line.rstrip()}\n" if self.line.strip() else erase)
        self.line, self.returned, self.drawn, self.shown = "", False, False, time.monotonic()


def execute_notebook(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    *,
    cwd: Path,
    file: TextIO,
    environment: Mapping[str, str] | None = None,
) -> float:
    """Execute a notebook and write the executed copy; return the seconds it took.

    Args:
        notebook: the notebook.
        output: the executed copy, in ``RUN/notebooks/``.
        parameters: {name: value} for the cell tagged ``parameters``.
        cwd: working folder of the kernel.
        file: receives the progress.
        environment: additional environment variables of the kernel.

    Raises:
        StageFailed: the notebook raised an error, or its kernel died.
        MedReflError: the executed notebook cannot be written.
        KeyboardInterrupt: Ctrl-C; the kernel has been killed.
    """
    progress, started = Progress(file), time.perf_counter()
    # In a separate thread: nbclient would handle Ctrl-C itself, and JupyterLab's kernel already runs an event loop.
    with ThreadPoolExecutor(1) as pool:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            future = pool.submit(_papermill, notebook, output, dict(parameters), cwd, progress, dict(environment or {}))
            future.result()
        except OSError as error:
            raise MedReflError(f"{output} cannot be written: {error.strerror or error}") from None
        except KeyboardInterrupt:
            while not future.done():  # the kernel may not have started yet
                end_orphans(output.parent.parent)
                wait([future], timeout=0.2)
            raise
        finally:
            progress.close()
    return time.perf_counter() - started


def end_orphans(folder: Path) -> None:
    """Kill the kernels that work in a run's folder, and their child processes. The caller must hold the run's lock."""
    ours = os.path.abspath(folder)
    orphans = [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get(CHAIN) == ours]
    for process in orphans:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(orphans, timeout=10)


def _papermill(
    notebook: Path,
    output: Path,
    parameters: dict[str, Any],
    cwd: Path,
    progress: Progress,
    environment: dict[str, str],
) -> None:
    import zmq
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    environment = environment | {
        CHAIN: os.path.abspath(output.parent.parent),
        # Waiting OpenMP threads that spin take cores from the threads that compute.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "0"),
        "TQDM_NCOLS": str(progress.width),
    }

    class ThisInterpreter(AsyncKernelManager):
        """Start a kernel of sys.executable, whatever kernel is installed under the name python3."""

        def __init__(self, **settings: Any) -> None:
            if self.has_trait("transport_encryption") and zmq.has("curve"):
                settings["transport_encryption"] = "auto"  # else other users of the machine can read the traffic
            super().__init__(**settings)

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(**get_kernel_dict(), env=environment)

        async def _async_interrupt_kernel(self) -> None:
            # A shutdown first sends SIGINT. An idle kernel then logs "KeyboardInterrupt caught in kernel" to stderr.
            if not self.shutting_down:
                await super()._async_interrupt_kernel()

    try:
        execute_notebook(
            _literal_path(notebook),
            _literal_path(output),
            parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            stderr_file=progress,
            cwd=cwd,
            kernel_manager_class=ThisInterpreter,
            coalesce_streams=True,  # a progress bar with a thousand updates becomes one line in the executed notebook
        )
    except PapermillExecutionError as error:
        raise StageFailed(error.ename, error.evalue, _frames(error.traceback), output) from None
    except DeadKernelError:
        raise StageFailed("DeadKernelError", "the kernel died (out of memory?)", [], output) from None
    except CellExecutionError as error:
        raise StageFailed(error.ename, error.evalue, [], output) from None


def _literal_path(path: Path) -> str:
    """Escape the braces of a path: papermill fills in ``{name}`` in its paths by str.format."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _frames(traceback: Sequence[str]) -> list[str]:
    """Return the cell's frame and the innermost one. The executed notebook has the whole traceback."""
    frames = [frame for frame in traceback[:-1] if "---> " in CONTROL.sub("", frame) or "-> " in CONTROL.sub("", frame)]
    return [CONTROL.sub("", frame).rstrip() for frame in (frames if len(frames) <= 2 else [frames[0], frames[-1]])]
