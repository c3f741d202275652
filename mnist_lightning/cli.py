"""The commands, and what a person sees when something is wrong."""

import gc
import os
import sys
from importlib import import_module

from mnist_lightning import __version__
from mnist_lightning.commands import guest
from mnist_lightning.errors import BadSetting, UserError, nearest, of_another_process
from mnist_lightning.processes import Interrupted, is_first_process

# Where each is; imported when it is called: with most of them comes torch.
COMMANDS = {
    "fit": "mnist_lightning.commands.fit:command",
    "validate": "mnist_lightning.commands.evaluate:command",
    "test": "mnist_lightning.commands.evaluate:command",
    "predict": "mnist_lightning.commands.predict:command",
    "report": "mnist_lightning.commands.report:command",
    "serve": "mnist_lightning.commands.serve:command",
    "export": "mnist_lightning.commands.export:command",
    "convert": "mnist_lightning.commands.convert:command",
    "search": "mnist_lightning.commands.search:command",
}
USAGE = f"""mnist_lightning {__version__}: train, evaluate and use handwritten-digit classifiers

  python -m mnist_lightning fit                                    train a CNN, test it, keep it in checkpoints/cnn
  python -m mnist_lightning fit --config simple_mlp                train a recipe, or the settings of any YAML file
  python -m mnist_lightning fit --ckpt_path last                   go on with the newest run
  python -m mnist_lightning fit --seeds 3                          several networks in a run, whose mean is used
  python -m mnist_lightning test                                   test the newest run, or --run NAME
  python -m mnist_lightning validate                               likewise on its validation images
  python -m mnist_lightning predict FILE…                          read digits in pictures; without files a table
  python -m mnist_lightning report [RUN …]                         a page of a run, or several compared
  python -m mnist_lightning serve                                  a page to draw digits on, and the same for programs
  python -m mnist_lightning export --output FILE.onnx              the network for use elsewhere; also .pt2, .html
  python -m mnist_lightning convert --split train --output FILE    write images as CSV, IDX, PNG, npz, Parquet or text
  python -m mnist_lightning search --config cnn --trials 50        better settings, by trials on one machine or many

  python -m mnist_lightning COMMAND --help                         all settings of a command
"""


def main(args: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 done, 1 failed, 2 wrong words, 130 Ctrl-C, 143 SIGTERM."""
    command, *words = list(sys.argv[1:] if args is None else args) or ["--help"]
    if command in ("-h", "--help", "--version"):
        print(f"{__version__}\n" if command == "--version" else USAGE, end="")
        return 0
    if command not in COMMANDS:
        return _say(f"there is no command {command!r}; {nearest(command, COMMANDS)}", 2)
    with guest(program=args is None) as signals:
        sys.path.insert(0, os.getcwd())  # for classes of the user's; `python -m` has it there already
        try:
            module, _, function = COMMANDS[command].partition(":")
            run = getattr(import_module(module), function)
            signals.imported()
            if args is None:
                gc.freeze()  # else Python looks through all that was imported for garbage, again and again
            run(command, words, signals)
            return 0
        except (UserError, OSError, Interrupted, RuntimeError) as error:
            told = _told(error, command)
            if told is None or ("--debug" in words and not isinstance(error, Interrupted)):
                raise
            return _say(*told)


def _told(error: BaseException, command: str) -> tuple[str, int] | None:
    """What a person is told, in a line, and the exit status; None: it is no fault of theirs."""
    if isinstance(error, UserError):
        return str(error), 2 if isinstance(error, BadSetting) else 1
    if isinstance(error, Interrupted):
        return str(error), 128 + error.signum
    if isinstance(error, OSError):
        return f"{error.filename or command}: {error.strerror or error}", 1
    if isinstance(error, Exception) and of_another_process(error):
        return "another process of this run has ended: see why there, then continue with --ckpt_path last", 1
    return None


def _say(message: str, status: int) -> int:
    if is_first_process():  # several processes fail alike; one speaks
        print(f"mnist_lightning: {message}", file=sys.stderr)
    return status
