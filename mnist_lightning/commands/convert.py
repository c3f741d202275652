"""Images as text, for other programs."""

from pathlib import Path

from mnist_lightning.console import say
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.data.tables import write_text
from mnist_lightning.errors import BadSetting, UserError
from mnist_lightning.files import is_device
from mnist_lightning.processes import Signals
from mnist_lightning.settings import parsed
from mnist_lightning.words import merged, pairs_of_words


def command(name: str, words: list[str], signals: Signals) -> None:
    """Writes one split as tab-delimited text: 784 pixel values and the label on a line."""
    config = parsed(name, merged(pairs_of_words(words)))
    data, output = config.data.make(), Path(config.output)
    if not isinstance(data, MNISTDataModule):
        raise BadSetting(f"--data: convert reads MNISTDataModule's files, no {type(data).__name__}")
    data.prepare_data()
    digits = data.read(config.split)
    if config.rows is not None and not 1 <= config.rows <= len(digits.labels):
        raise BadSetting(f"--rows is {config.rows}; there are {len(digits.labels)} images")
    rows = slice(config.rows)
    if is_device(output):
        raise UserError(f"{output} is a pipe or a device, which would be replaced: give a file's name")
    write_text(type(digits)(digits.images[rows], digits.labels[rows]), output)
    say(f"{len(digits.labels[rows]):,} images of {data.source} written to {output}")
