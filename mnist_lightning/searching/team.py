"""Processes that train trials beside each other, each on its own core, and stay for the next."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

STOPPING = 60.0  # seconds that a training may take to write its checkpoint


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Worker:
    """One of them: its process, and the line to it."""

    def __init__(self, threads: int, answers: "queue.Queue[tuple[Worker, dict[str, Any] | None]]") -> None:
        path = os.pathsep.join(dict.fromkeys([os.getcwd(), *filter(None, sys.path)]))
        self.idle = self.spoke = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the process)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mnist_lightning.searching.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the process that has the study
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, args=(answers,), daemon=True)
        self._reader.start()

    def _read(self, answers: "queue.Queue[tuple[Worker, dict[str, Any] | None]]") -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                answers.put((self, json.loads(line)))
        answers.put((self, None))

    def tell(self, **message: Any) -> None:
        assert self.process.stdin is not None
        self.idle = self.idle and "take" in message
        with suppress(OSError):  # if it has ended its line says so, too
            print(json.dumps(message), file=self.process.stdin, flush=True)

    def stop(self) -> None:
        """Asks for a checkpoint and an end."""
        self.process.terminate()

    def end(self) -> None:
        """Ends it now."""
        assert self.process.stdin is not None
        self.process.kill()
        self.process.wait()
        self._reader.join()
        with suppress(OSError):  # a task that it had not taken
            self.process.stdin.close()
        self._errors.close()

    def last_words(self) -> str:
        """Why it ended, as far as it said so."""
        status = self.process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"the process ended with status {status}" + (f": {lines[-1]}" if lines else "")


class Team:
    """So many workers; one that dies is replaced."""

    def __init__(self, jobs: int, lent: Path | None = None) -> None:
        self.jobs, self.threads, self.lent = jobs, max(1, cores() // jobs), lent
        self._answers: queue.Queue[tuple[Worker, dict[str, Any] | None]] = queue.Queue()
        self.workers: list[Worker] = []
        self.fill()

    def _worker(self) -> Worker:
        worker = Worker(self.threads, self._answers)
        if self.lent:
            worker.tell(take=str(self.lent))
        return worker

    def lend(self, folder: Path) -> None:
        """Digits that each of them takes."""
        self.lent = folder
        for worker in self.workers:
            worker.tell(take=str(folder))

    def replace(self, worker: Worker, again: bool = True) -> None:
        """Another in the place of one that has ended; without `again`, none until the next `fill`."""
        worker.end()
        self.workers.remove(worker)
        if again:
            self.workers.append(self._worker())

    def fill(self) -> None:
        """Starts as many as are missing."""
        while len(self.workers) < self.jobs:
            self.workers.append(self._worker())

    def answers(self, patience: float) -> Iterator[tuple[Worker, dict[str, Any] | None]]:
        """What workers say, waiting so many seconds for the first; None: that one has ended."""
        with suppress(queue.Empty):
            worker, message = self._answers.get(timeout=patience)
            while True:
                if message is not None:
                    worker.spoke, worker.idle = True, "epoch" not in message
                yield worker, message
                worker, message = self._answers.get_nowait()

    def idle(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.idle]

    def end(self) -> None:
        while self.workers:
            self.workers.pop().end()
