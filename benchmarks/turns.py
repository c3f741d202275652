"""Two or more sides measured in turns, each in a process of its own: what one sets up does not reach the other."""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any


class Side:
    """A process that runs `command` with Python and measures whenever it is asked to."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def measure(self, turn: int) -> Any:
        """What the process answers for this turn."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(turn, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{' '.join(map(str, self.process.args))} failed: run it by hand and type a number")  # type: ignore[union-attr]
        return json.loads(answer)

    def end(self) -> None:
        self.process.communicate()


def in_turns(sides: dict[str, Side], rounds: int) -> dict[str, list[Any]]:
    """What each side measured in each round; the order turns, so that none has the quiet moments. Ends the sides."""
    names = list(sides)
    measured: dict[str, list[Any]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            taken = sides[name].measure(turn)
            if turn:  # the first round warms up
                measured[name].append(taken)
    for side in sides.values():
        side.end()
    return measured


def answer(measure: Callable[[int], Any]) -> None:
    """What such a process does: measures for each turn that comes in, and says the result."""
    for line in sys.stdin:
        with contextlib.redirect_stdout(io.StringIO()):
            result = measure(int(line))
        print(json.dumps(result), flush=True)
