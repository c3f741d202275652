"""One small network behind a server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from samples import trained
from served import served

from mnist_lightning.predictor import Predictor
from mnist_lightning.serving.app import App
from mnist_lightning.serving.collection import Collection


@pytest.fixture(scope="session")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """One that has learnt nothing, and is therefore sure of nothing."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "small.ckpt"
    torch.save(trained(), file)
    return Predictor(file)


@pytest.fixture(scope="module")
def url(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that collects corrections in `collected`."""
    folder = tmp_path_factory.mktemp("serve") / "collected"
    with served(App(predictor, collection=Collection(folder, predictor.names))) as (address, _):
        yield address


@pytest.fixture
def collected(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where that server saves them."""
    return next(tmp_path_factory.getbasetemp().glob("serve*/collected"))
