"""The commands, and what a person sees when something is wrong."""

import argparse
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from mnist_lightning import __version__
from mnist_lightning.errors import BadSetting, UserError, of_another_process
from mnist_lightning.settings import nearest

USAGE = f"""mnist_lightning {__version__}: train, evaluate and use handwritten-digit classifiers

  python -m mnist_lightning fit                                    train a CNN, test it, keep it in checkpoints/cnn
  python -m mnist_lightning fit --config configs/simple_mlp.yaml   train a recipe
  python -m mnist_lightning fit --ckpt_path last                   go on with the newest run
  python -m mnist_lightning test                                   test the newest run, or --run NAME
  python -m mnist_lightning validate | predict                     likewise: validation images; a table of predictions
  python -m mnist_lightning report                                 a table of all runs, or of one: --run NAME
  python -m mnist_lightning convert --split train --output FILE    write images as tab-delimited text

  python -m mnist_lightning COMMAND --help                         all settings of a command
"""


def main(args: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 done, 1 failed, 2 wrong words, 130 Ctrl-C, 143 SIGTERM."""
    args = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    command, *words = args
    if command not in COMMANDS:
        return _say(f"there is no command {command!r}; {nearest(command, COMMANDS)}", 2)

    from mnist_lightning.training.signals import FIRST_PROCESS, Interrupted, Signals, end_with_the_first

    signals = Signals()
    signals.install()
    end_with_the_first()
    try:
        COMMANDS[command](words, signals)
    except (UserError, OSError) as error:
        if debug:
            raise
        if isinstance(error, OSError):
            return _say(f"{error.filename or command}: {error.strerror or error}", 1)
        return _say(str(error), 2 if isinstance(error, BadSetting) else 1)
    except Interrupted as interrupted:
        return _say(str(interrupted), 128 + interrupted.signum)
    except RuntimeError as error:
        if debug or not of_another_process(error):
            raise
        return _say("another process of this run has ended: see why there, then continue with --ckpt_path last", 1)
    finally:
        pass  # of what is started from here on, this is not the first process
    return 0


def _say(message: str, status: int) -> int:
    from mnist_lightning.runs import is_first_process

    if is_first_process():  # several processes fail alike; one speaks
        print(f"mnist_lightning: {message}", file=sys.stderr)
    return status


# ---------------------------------------------------------------------- the commands


Command = Callable[[list[str], Any], None]


def _command(module: str, function: str, *first: str) -> Command:
    """A function of a module that is imported when it is called: with it comes torch."""

    def run(words: list[str], signals: Any) -> None:
        call = getattr(import_module(f"mnist_lightning.{module}"), function)
        signals.importing = False
        call(*first, words, signals)

    return run


def report(words: list[str], signals: Any) -> None:
    """A table of all runs, or with --run NAME of one; needs no torch."""
    parser = argparse.ArgumentParser(prog="python -m mnist_lightning report", description=report.__doc__)
    parser.add_argument("--run", help="Name of the run: its folder's name.")
    parser.add_argument("--trainer.default_root_dir", dest="root", default="checkpoints", help="Where runs lie.")
    settings, unknown = parser.parse_known_args(words)
    if unknown:
        raise BadSetting(f"there is no flag {unknown[0]}; {nearest(unknown[0], parser._option_string_actions)}")
    from mnist_lightning.tools import report as tool

    tool.report(Path(settings.root), settings.run)


COMMANDS: dict[str, Command] = {
    "fit": _command("fit", "fit"),
    "validate": _command("tools.evaluate", "evaluate", "validate"),
    "test": _command("tools.evaluate", "evaluate", "test"),
    "predict": _command("tools.evaluate", "evaluate", "predict"),
    "convert": _command("tools.convert", "convert"),
    "report": report,
}
