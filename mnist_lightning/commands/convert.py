"""Images written in a form that other programs read."""

from pathlib import Path

from mnist_lightning.console import say
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.data.writing import form_of, write
from mnist_lightning.errors import BadSetting
from mnist_lightning.processes import Signals
from mnist_lightning.settings import parsed
from mnist_lightning.words import merged, pairs_of_words


def command(name: str, words: list[str], signals: Signals) -> None:
    """Writes one split, from whatever source, as text, CSV, IDX, npz, PNG folders or Parquet."""
    config = parsed(name, merged(pairs_of_words(words)))
    data, output = config.data.make(), Path(config.output)
    if not isinstance(data, MNISTDataModule):
        raise BadSetting(f"--data: convert reads MNISTDataModule's files, no {type(data).__name__}")
    data.prepare_data()
    digits = data.read(config.split)
    if config.rows is not None and not 1 <= config.rows <= len(digits.labels):
        raise BadSetting(f"--rows is {config.rows}; there are {len(digits.labels)} images")
    rows = slice(config.rows)
    digits = digits._replace(images=digits.images[rows], labels=digits.labels[rows])
    write(digits, config.split, output, config.form or form_of(output))
    say(f"{len(digits.labels):,} images of {data.source} written to {output}")
