"""Where everything that a person reads is printed, but for errors."""

from rich.console import Console

console = Console(emoji=False)  # a run may be called :x:


def say(line: str) -> None:
    """Prints a line as it is: a path is there to be copied, whatever its length and characters."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
