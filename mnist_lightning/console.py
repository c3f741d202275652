"""Where everything that a person reads is printed, but for errors."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

# A run may be called :x:. In a notebook plain text stays one block, in the order it was printed.
console = Console(emoji=False, force_jupyter=False)


def say(line: str) -> None:
    """Prints a line as it is: a path is there to be copied, whatever its length and characters."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def in_notebook() -> bool:
    """Whether what is printed goes to a notebook, which takes what a bar needs of a terminal for text."""
    shell = sys.modules["IPython"].get_ipython() if hasattr(sys.modules.get("IPython"), "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


@contextmanager
def any_character() -> Iterator[None]:
    """What a terminal's or a file's encoding does not have is printed as `\\u2026` meanwhile; nothing fails for it."""
    changed = []
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and stream.errors == "strict":  # a notebook's takes everything
            stream.reconfigure(errors="backslashreplace")
            changed.append(stream)
    try:
        yield
    finally:
        for stream in changed:
            stream.reconfigure(errors="strict")
