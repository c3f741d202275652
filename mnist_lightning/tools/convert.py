"""Images as text, for other programs."""

from pathlib import Path

from mnist_lightning import runs
from mnist_lightning.console import say
from mnist_lightning.data.sources import write_text
from mnist_lightning.errors import BadSetting, UserError
from mnist_lightning.settings import instantiate, parse, parser_of
from mnist_lightning.training.signals import Signals


def convert(words: list[str], signals: Signals) -> None:
    """Writes one split as tab-delimited text: 784 pixel values and the label on a line."""
    parser = parser_of("convert")
    config = parse(parser, words)
    data = instantiate(parser, config).data
    data.prepare_data()
    digits = data.read(config.split)
    if config.rows is not None and not 1 <= config.rows <= len(digits.labels):
        raise BadSetting(f"--rows is {config.rows}; there are {len(digits.labels)} images")
    rows = slice(config.rows)
    if runs.is_device(Path(config.output)):
        raise UserError(f"{config.output} is a pipe or a device, which would be replaced: give a file's name")
    write_text(type(digits)(digits.images[rows], digits.labels[rows]), Path(config.output))
    say(f"{len(digits.labels[rows]):,} images of {data.source} written to {config.output}")
