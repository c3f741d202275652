"""What each command does."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from mnist_lightning.processes import Signals, end_with_the_first


@contextmanager
def guest() -> Iterator[Signals]:
    """Takes signals, environment, warnings and logs of the process, and gives them back however a command ends."""
    environment, path = dict(os.environ), sys.path[:]
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels, signals = [logger.level for logger in loggers], Signals()
    with warnings.catch_warnings():
        signals.install()
        try:
            end_with_the_first()
            yield signals
        finally:
            signals.restore()
            sys.path[:] = path
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update(environment)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
