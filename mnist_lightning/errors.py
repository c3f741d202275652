"""The exceptions that a person is meant to read: one line, what is wrong and what to do."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something that the user can put right. Exit status 1."""

    def _render_traceback_(self) -> list[str]:
        """What IPython and notebooks show in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class BadSetting(UserError):  # noqa: N818
    """A word of the command line, or of a configuration file, that cannot be right. Exit status 2."""


def nearest(word: str, words: Iterable[str]) -> str:
    """What was meant, as the end of a message."""
    names = {name.lstrip("-").lower(): name for name in words}
    near = difflib.get_close_matches(word.lstrip("-").lower(), names, n=1)
    if near:
        return f"did you mean {names[near[0]]}?"
    return f"there are {', '.join(sorted(names.values()))}" if len(names) <= 20 else "see --help"


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def of_another_process(error: Exception) -> bool:
    """Whether a process that computes together with others waited for one that is gone."""
    import torch

    if not torch.distributed.is_available():  # a build for one process
        return False
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Around imports of what an extra brings."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"{what} needs {error.name}: pip install 'mnist-lightning[{extra}]' brings it") from error
