"""`predict FILE…`: what pictures say. Without files, a table of the test images: see evaluate.py."""

import io
import os
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from mnist_lightning.errors import BadSetting, UserError, nearest
from mnist_lightning.files import is_device, unwritable, whole_file
from mnist_lightning.processes import Signals

USAGE = """usage: python -m mnist_lightning predict FILE… [--json] [--csv [FILE]] [--save_seen FOLDER]
                                         [--run NAME | --ckpt_path FILE]
   or: python -m mnist_lightning predict [--run NAME | --ckpt_path FILE] [--SETTING VALUE …]

Reads digits in pictures: PNG, JPEG, WebP, BMP, TIFF, GIF, HEIC (an extra), of any mode and size; folders of them;
patterns; - for standard input; files of digits such as Kaggle's test.csv, .npz, IDX. Several digits in a row are read
as a number. Without files: predictions.csv, a table of the test images (of --data.root FOLDER and the other settings
that `test --help` lists).

  --json              an object a line: file, digit, word, confidence, runner_up, status; of a number also number
  --csv [FILE.csv]    the same as a table; of a data file without labels Kaggle's form, ImageId,Label
  --save_seen FOLDER  the 28x28 images that the network saw, as PNG
  --run NAME          the run whose best checkpoint reads; without, the newest, else the shipped weights
  --ckpt_path FILE    a checkpoint or .onnx file; last or best of the run; pretrained: the shipped weights
  --trainer.default_root_dir FOLDER   where the runs are (checkpoints)

status: ok; unsure: the likeliest digit is given, it may be none; number; blank; none: no digit; unreadable.
Exit status 1 if a file could not be read; the others are read all the same.
"""
FLAGS = ("run", "ckpt_path", "save_seen", "trainer.default_root_dir", "json", "csv", "debug")
SWITCHES = ("json", "debug")
OF_THE_TABLE = ("config", "model", "data")  # more that is known without files, beside --data.… and the like
FEW, AT_ONCE = 16, 500  # files that a thread opens in one go: at first, and of small ones that are opened soon
SOON = 0.3  # seconds


def command(name: str, words: list[str], signals: Signals) -> None:
    """Tells what pictures say, in their order, as soon as it is known."""
    if "-h" in words or "--help" in words:
        print(USAGE, end="")
        return
    files, asked = parted(words)
    if not files:
        from mnist_lightning.commands import evaluate

        for flag in asked.keys() & {"json", "csv", "save_seen"}:
            raise BadSetting(f"--{flag} goes with pictures: name their files, or - for standard input")
        return evaluate.command(name, words, signals)
    for flag in asked.keys() - set(FLAGS):
        raise BadSetting(f"there is no flag --{flag} for pictures; {nearest(flag, [f'--{one}' for one in FLAGS])}")
    if "json" in asked and asked.get("csv") == "":
        raise BadSetting("--json and --csv both write to standard output: give --csv a file")
    try:
        _read(files, asked)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parted(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Files, and flags with their values; --csv has one if the word after it ends in .csv and is not all there is."""
    files: list[str] = []
    asked: dict[str, Any] = {}
    left = deque(words)
    while left:
        word = left.popleft()
        if word == "--":
            files += left
            break
        if not word.startswith("--"):
            files.append(word)
            continue
        flag, equals, value = word.removeprefix("--").partition("=")
        if "." not in flag and flag not in (*FLAGS, *OF_THE_TABLE):  # else it would take a file for its value
            raise BadSetting(f"there is no flag --{flag}; {nearest(flag, [f'--{one}' for one in FLAGS])}")
        if flag in SWITCHES:
            asked[flag] = True
        elif equals:
            asked[flag] = value
        elif flag == "csv":
            others = files or [one for one in islice(left, 1, None) if not one.startswith("--")]
            asked[flag] = left.popleft() if left and left[0].lower().endswith(".csv") and others else ""
        elif not left or left[0].startswith("--"):
            raise BadSetting(f"--{flag} takes a value; see --help")
        else:
            asked[flag] = left.popleft()
    return files, asked


def _read(files: list[str], asked: dict[str, Any]) -> None:
    from mnist_lightning.commands import answers
    from mnist_lightning.data.pictures import is_unlabelled, named
    from mnist_lightning.predictor import chosen

    warnings.simplefilter("ignore")  # what Pillow thinks of a file is told in its line
    root = Path(asked.get("trainer.default_root_dir") or "checkpoints")
    predictor = chosen(root, asked.get("run"), asked.get("ckpt_path"))
    kaggle = "csv" in asked and len(files) == 1 and is_unlabelled(files[0])
    unread: list[str] = []
    count = 0
    with ExitStack() as stack:
        tell = [answers.to_screen()] if not {"json", "csv"} & asked.keys() else []
        if "json" in asked:
            tell.append(answers.as_json)
        if "csv" in asked:
            tell.append(answers.AsTable(_table(asked["csv"], stack), kaggle))
        if "save_seen" in asked:
            tell.append(answers.Saved(Path(asked["save_seen"])))
        for reading in read(predictor, named(files)):
            count += 1
            if reading.reason:
                unread.append(f"{answers.printable(reading.file)} {reading.reason}")
            for one in tell:
                one(reading)
    if unread:
        of = f"{len(unread):,} of {count:,} files could not be read, the first: " if count > 1 else ""
        raise UserError(of + unread[0])


def _table(file: str, stack: ExitStack) -> Any:
    """Where a table is written to; a file appears whole or not at all, and never in the place of another kind."""
    if file in ("", "-"):
        return sys.stdout
    path = Path(file)
    if is_device(path):
        return stack.enter_context(path.open("w", newline="", encoding="utf-8"))
    try:
        start = path.read_text(encoding="utf-8", errors="replace")[:20] if path.exists() else "file,"
    except OSError as error:
        raise unwritable(path, error) from error
    if not start.startswith(("file,", "ImageId,")):
        raise UserError(f"{path} is there and is no table of predict: give --csv another name")
    binary = stack.enter_context(whole_file(path))
    text = io.TextIOWrapper(binary, encoding="utf-8", newline="", write_through=True)
    stack.callback(text.detach)
    return text


def read(predictor: Any, names: Iterable[str]) -> Iterator[Any]:
    """A Reading for each picture, in their order. Threads open files, so many ahead, while the network reads."""
    from mnist_lightning.data.pictures import known_formats, sights
    from mnist_lightning.reading import readings

    formats, stopped, left, few = known_formats(), threading.Event(), iter(names), FEW

    def opened(some: list[str]) -> tuple[list[Any], float]:
        start = time.perf_counter()
        return list(sights(takewhile(lambda _: not stopped.is_set(), some), formats)), time.perf_counter() - start

    ahead = os.cpu_count() or 1
    waiting: deque[Future[tuple[list[Any], float]]] = deque()
    pool = ThreadPoolExecutor(ahead, thread_name_prefix="pictures")
    try:
        while True:
            while len(waiting) < 2 * ahead and (some := list(islice(left, few))):
                waiting.append(pool.submit(opened, some))
            if not waiting:
                return
            found, seconds = waiting.popleft().result()
            few = min(2 * few, AT_ONCE) if seconds < SOON else FEW
            yield from readings(predictor, found)
    finally:
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)
