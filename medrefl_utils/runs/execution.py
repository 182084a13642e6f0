"""One notebook, executed by papermill in a kernel of this very interpreter, its progress shown as it comes."""

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
"""In a kernel's environment: the run's folder. There ``chain.upstream`` starts no other chain."""
HEARTBEAT = 30.0  # seconds between two prints of a moving bar where the output is no terminal


class StageFailed(Exception):
    """A notebook raised: the error's name, its message, the frames that matter, the notebook as executed."""

    def __init__(self, name: str, message: str, frames: Sequence[str], notebook: Path) -> None:
        super().__init__(f"{name}: {message}")
        self.name, self.message, self.frames, self.notebook = name, message, list(frames), notebook


class Progress:
    """What a notebook writes to stderr, indented: whole lines as they come, a bar that rewrites itself in place.

    Without a terminal (a CI log) a bar's last state is printed, and a moving one every ``HEARTBEAT`` seconds.
    """

    def __init__(self, file: TextIO) -> None:
        self.file, self.live = file, file.isatty()
        self.width = min(shutil.get_terminal_size((130, 24)).columns, 130) - 5
        self.line, self.returned, self.drawn, self.shown = "", False, False, time.monotonic()

    def write(self, text: str) -> None:
        """Take what the notebook wrote; terminal control codes in it are dropped."""
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
        """Nothing waits here: ``write`` flushes."""

    def close(self) -> None:
        """Leave the last state of an unfinished bar as a line of its own."""
        self._end()
        self.file.flush()

    def _end(self) -> None:
        erase = "\r\x1b[2K" if self.drawn else ""
        self.file.write(f"{erase}    {self.line.rstrip()}\n" if self.line.strip() else erase)
        self.line, self.returned, self.drawn, self.shown = "", False, False, time.monotonic()


def execute_notebook(notebook: Path, output: Path, parameters: Mapping[str, Any], *, cwd: Path, file: TextIO) -> float:
    """Execute a notebook into ``output`` with the parameters; returns seconds. Progress goes to ``file``.

    On KeyboardInterrupt the kernel is ended before it is passed on.

    Raises:
        StageFailed: the notebook's own error.
        MedReflError: the executed notebook cannot be written.
    """
    progress, started = Progress(file), time.perf_counter()
    # In a thread of its own: nbclient would take Ctrl-C for itself, and inside JupyterLab an event loop runs already.
    with ThreadPoolExecutor(1) as pool:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            future = pool.submit(_papermill, notebook, output, dict(parameters), cwd, progress)
            future.result()
        except OSError as error:
            raise MedReflError(f"{output} cannot be written: {error.strerror or error}") from None
        except KeyboardInterrupt:
            while not future.done():  # its kernel may only be about to start
                end_orphans(output.parent.parent)
                wait([future], timeout=0.2)
            raise
        finally:
            progress.close()
    return time.perf_counter() - started


def end_orphans(folder: Path) -> None:
    """End the kernels that work in a run's folder, with what they started. Only for who holds the folder's lock."""
    ours = os.path.abspath(folder)
    orphans = [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get(CHAIN) == ours]
    for process in orphans:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(orphans, timeout=10)


def _papermill(notebook: Path, output: Path, parameters: dict[str, Any], cwd: Path, progress: Progress) -> None:
    import zmq
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    environment = {
        CHAIN: os.path.abspath(output.parent.parent),
        # OpenMP threads that spin while they wait take the cores from those that work.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "0"),
        "TQDM_NCOLS": str(progress.width),
    }

    class ThisInterpreter(AsyncKernelManager):
        """Whatever kernels the user has installed under the name python3, this one is sys.executable."""

        def __init__(self, **settings: Any) -> None:
            if self.has_trait("transport_encryption") and zmq.has("curve"):
                settings["transport_encryption"] = "auto"  # else other users of the machine can read along
            super().__init__(**settings)

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(**get_kernel_dict(), env=environment)

    try:
        execute_notebook(
            notebook,
            output,
            parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            stderr_file=progress,
            cwd=cwd,
            kernel_manager_class=ThisInterpreter,
            coalesce_streams=True,  # a bar of a thousand updates is one line in the executed notebook
        )
    except PapermillExecutionError as error:
        raise StageFailed(error.ename, error.evalue, _frames(error.traceback), output) from None
    except DeadKernelError:
        raise StageFailed("DeadKernelError", "the kernel died (out of memory?)", [], output) from None
    except CellExecutionError as error:
        raise StageFailed(error.ename, error.evalue, [], output) from None


def _frames(traceback: Sequence[str]) -> list[str]:
    """The cell's own frame and the innermost one: what stands between rarely helps, and the notebook holds it all."""
    frames = [frame for frame in traceback[:-1] if "---> " in CONTROL.sub("", frame) or "-> " in CONTROL.sub("", frame)]
    return [CONTROL.sub("", frame).rstrip() for frame in (frames if len(frames) <= 2 else [frames[0], frames[-1]])]
