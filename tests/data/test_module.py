"""MNISTDataModule: every source, what is held out, and how pixels are normalised."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from samples import write_mnist
from torch import Tensor

from mnist_lightning.cli import main
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.data.sources import Digits
from mnist_lightning.data.sources import read as read_digits
from mnist_lightning.data.synthetic import synthetic_digits
from mnist_lightning.data.tables import write_text
from mnist_lightning.errors import BadSetting, UserError
from mnist_lightning.settings import parsed


def module(root: Path, **options) -> MNISTDataModule:
    """Ready to fit and to test."""
    data = MNISTDataModule(str(root), **{"source": "mnist", "val_size": 50, "batch_size": 32} | options)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def seen(loader) -> tuple[Tensor, Tensor]:
    """Images and labels of one pass."""
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def positions(loader) -> set[int]:
    """Which images of the data set a loader hands out in an epoch."""
    return set(loader.positions(len(loader), rank=0).tolist())


def trainer(stage: str = "fit", **settings) -> Any:
    """What the data asks of a Trainer."""
    strategy, state = SimpleNamespace(root_device=torch.device("cpu")), SimpleNamespace(fn=stage)
    limits = {f"limit_{kind}_batches": 1.0 for kind in ("val", "test", "predict")}
    defaults = {"overfit_batches": 0.0, "global_rank": 0, "world_size": 1, "strategy": strategy, "state": state}
    return SimpleNamespace(**defaults | limits | settings)


def message(error: type[UserError], **options) -> str:
    with pytest.raises(error) as caught:
        module(**options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------- sources


@pytest.mark.parametrize("folder", ["tiny_mnist", "tiny_mnist_plain"])
@pytest.mark.parametrize("source", ["mnist", "auto"])
def test_idx_files(folder: str, source: str, tiny_digits, request: pytest.FixtureRequest):
    data = module(request.getfixturevalue(folder), source=source, val_size=0)
    assert data.source == "mnist"
    for split, (images, labels) in zip(("train", "test"), tiny_digits, strict=True):
        assert torch.equal(data.read(split).images, images)
        assert torch.equal(data.labels(split), labels)
    images, labels = seen(data.test_dataloader())
    assert torch.equal(images, data.normalized(tiny_digits[1][0]))
    assert torch.equal(labels, tiny_digits[1][1].long())


def test_text_is_the_same_as_idx(tiny_mnist: Path, tiny_digits, tmp_path: Path):
    for name, digits in zip(("train", "test"), tiny_digits, strict=True):
        write_text(Digits(*digits), tmp_path / name)
    files = {"train_file": str(tmp_path / "train"), "test_file": str(tmp_path / "test")}
    text, idx = module(Path("nowhere"), source="text", **files), module(tiny_mnist)
    assert text.source == "text"
    assert text.mean_std == idx.mean_std
    assert text.fingerprint() == idx.fingerprint()
    for one, other in (
        (text.train_dataloader(), idx.train_dataloader()),
        (text.test_dataloader(), idx.test_dataloader()),
    ):
        for batch, same in zip(one, other, strict=True):
            assert torch.equal(batch[0], same[0])
            assert torch.equal(batch[1], same[1])


@pytest.fixture
def few_synthetic(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Draws 200 instead of 60,000; returns the calls."""
    calls = []

    def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
        calls.append((count, seed))
        return synthetic_digits(200, seed)

    monkeypatch.setattr("mnist_lightning.data.module.synthetic_digits", draw)
    return calls


def test_synthetic(few_synthetic, tmp_path: Path):
    data = module(tmp_path, source="synthetic")
    assert sorted(few_synthetic) == [(10_000, 1), (60_000, 0)]  # other digits to test on
    assert len(data.labels("train")) == 150
    assert len(data.labels("test")) == 200


def test_auto_without_mnist_or_network_is_synthetic_and_knows_why(few_synthetic, no_network, tmp_path: Path):
    data = module(tmp_path, source="auto")
    assert data.source == "synthetic"
    assert data.download_problem
    assert "no network" in data.download_problem
    assert data.state_dict()["source"] == "synthetic"


def test_auto_downloads_where_it_can(tiny_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def download(folder: Path) -> None:
        (folder / "MNIST").mkdir(parents=True)
        (folder / "MNIST" / "raw").symlink_to(tiny_mnist)

    monkeypatch.setattr("mnist_lightning.data.module.download", download)
    data = module(tmp_path, source="auto")
    assert (data.source, data.download_problem) == ("mnist", None)
    assert len(data.labels("train")) == 250


def test_mnist_without_mnist_or_network(no_network, tmp_path: Path):
    assert message(UserError, root=tmp_path) == (
        f"MNIST could not be downloaded (no network): put the four files into {tmp_path}"
    )


def test_a_broken_folder_is_never_replaced_by_synthetic_digits(tiny_mnist: Path, tmp_path: Path, no_network):
    for file in tiny_mnist.glob("train*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = module(tmp_path, source="auto")
    assert data.source == "mnist"
    assert [len(data.labels(split)) for split in ("train", "val", "test")] == [200, 50, 50]
    assert "only one split" in str(data.told())


def test_root_from_the_environment(tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MNIST_ROOT", str(tiny_mnist))
    assert MNISTDataModule().root == tiny_mnist
    assert MNISTDataModule("elsewhere").root == Path("elsewhere")
    monkeypatch.delenv("MNIST_ROOT")
    assert MNISTDataModule().root == Path("data")


# ---------------------------------------------------------------------- what is held out


def test_validation_images_come_from_the_training_set_and_are_the_same_for_every_seed(tiny_mnist: Path):
    data, other = module(tiny_mnist, seed=0), module(tiny_mnist, seed=1)
    val, train = positions(data.val_dataloader()), positions(data.train_dataloader())
    assert len(val) == 50
    assert len(train) == 250
    assert val | train == set(range(300))
    assert positions(other.val_dataloader()) == val
    images = seen(data.val_dataloader())[0]
    assert torch.equal(images, data.normalized(read_digits(tiny_mnist, "train").images[sorted(val)]))
    assert sorted(val)[:5] == [14, 26, 29, 30, 31]  # a checkpoint's numbers depend on it


def test_validation_images_are_not_the_first_ones(tiny_mnist: Path):
    assert positions(module(tiny_mnist).val_dataloader()) != set(range(50))


def test_train_size_takes_the_first_of_those_not_held_out(tiny_mnist: Path):
    whole = sorted(positions(module(tiny_mnist).train_dataloader()))
    data = module(tiny_mnist, train_size=100)
    assert sorted(positions(data.train_dataloader())) == whole[:100]
    assert len(data.labels("train")) == 100
    assert positions(module(tiny_mnist, train_size=100, val_size=0).train_dataloader()) == set(range(100))


def test_without_validation_there_is_no_validation_loader(tiny_mnist: Path):
    data = module(tiny_mnist, val_size=0)
    assert data.val_dataloader() == []
    assert len(data.labels("train")) == 300


def test_test_each_epoch_watches_the_test_images_beside_the_validation_images(tiny_mnist: Path):
    def watched(stage: str, **options) -> list[int]:
        data = module(tiny_mnist, **options)
        data.trainer = trainer(stage)
        loaders = data.val_dataloader()
        return [len(positions(loader)) for loader in (loaders if isinstance(loaders, list) else [loaders])]

    assert watched("fit") == [50]
    assert watched("fit", test_each_epoch=True) == [50, 100]
    assert watched("fit", test_each_epoch=True, val_size=0) == [0, 100]
    assert watched("validate", test_each_epoch=True) == [50]  # `validate` means the validation images


def test_the_seed_sets_the_order_of_training(tiny_mnist: Path):
    def first(seed: int) -> list[int]:
        return module(tiny_mnist, seed=seed).train_dataloader().positions(1, rank=0).tolist()

    assert first(1) == first(1) != first(2)


# ---------------------------------------------------------------------- pixels


@pytest.mark.parametrize(("normalize", "expected"), [("none", (0.0, 1.0)), ((0.25, 0.5), (0.25, 0.5)), ("auto", None)])
def test_normalize(normalize, expected, tiny_mnist: Path, tiny_digits):
    data = module(tiny_mnist, normalize=normalize)
    pixels = tiny_digits[0][0].double() / 255
    mean, std = expected or (round(pixels.mean().item(), 4), round(pixels.std(correction=0).item(), 4))
    assert data.mean_std == (mean, std)
    images, _ = seen(data.test_dataloader())
    assert images.dtype == torch.float32
    assert images.shape == (100, 1, 28, 28)
    exact = (tiny_digits[1][0].double() / 255 - mean) / std
    assert (images[:, 0] - exact).abs().max() < 1e-5


def test_normalized_needs_setup():
    with pytest.raises(RuntimeError, match="setup"):
        MNISTDataModule().normalized(torch.zeros(1, 28, 28, dtype=torch.uint8))


def test_batches_without_a_trainer(tiny_mnist: Path):
    """Any PyTorch loop may use them, without `setup`."""
    data = MNISTDataModule(str(tiny_mnist), "mnist", batch_size=40, val_size=60)
    sizes = []
    for images, labels in data.train_dataloader():
        assert (images.dtype, labels.dtype, images.shape[1:]) == (torch.float32, torch.int64, (1, 28, 28))
        sizes.append(len(labels))
    assert sizes == [40] * 6
    assert len(data.train_dataloader()) == 6
    assert [len(labels) for _, labels in data.val_dataloader()] == [60]
    assert [len(labels) for _, labels in MNISTDataModule(str(tiny_mnist), "mnist", val_size=60).test_dataloader()] == [
        100
    ]


def test_evaluation_is_in_order_and_complete(tiny_mnist: Path):
    assert module(tiny_mnist).test_dataloader().positions(1, rank=0).tolist() == list(range(100))


@pytest.mark.parametrize("limit", ["limit_val_batches", "limit_test_batches", "limit_predict_batches"])
def test_limits_of_evaluation_count_batches_of_the_training_size(limit: str, tiny_mnist: Path):
    data = module(tiny_mnist)
    for value, batches in ((1.0, 1), (0.5, 4), (2, 4), (1, 4)):
        data.trainer = trainer("test", **{limit: value})
        assert len(data.test_dataloader()) == batches  # one of 100 images, or four of 32


def test_overfitting_looks_at_the_same_batches_again(tiny_mnist: Path):
    data = module(tiny_mnist)
    data.trainer = trainer(overfit_batches=2)
    loader = data.train_dataloader()
    assert [loader.order(epoch).tolist() for epoch in (0, 1)] == [sorted(positions(loader))] * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_has_its_share(rank: int, tiny_mnist: Path):
    data = module(tiny_mnist)
    data.trainer = trainer(global_rank=rank, world_size=2)
    loader = data.train_dataloader()
    assert [len(labels) for _, labels in loader] == [32, 32, 32, 29]
    whole = module(tiny_mnist, batch_size=64).train_dataloader()
    assert loader.order(0).tolist() == whole.order(0).tolist()


# ---------------------------------------------------------------------- what a checkpoint keeps


def test_the_state_is_what_a_tool_needs(tiny_mnist: Path):
    data = module(tiny_mnist, normalize=(0.25, 0.5))
    state = data.state_dict()
    known = {"source": "mnist", "mean": 0.25, "std": 0.5, "classes": 10, "names": list("0123456789")}
    assert state == known | {"fingerprint": data.fingerprint()}
    assert len(state["fingerprint"]) == 8


def test_the_fingerprint_tells_other_training_images(tiny_mnist: Path, tiny_digits, tmp_path: Path):
    one = module(tiny_mnist).fingerprint()
    assert module(tiny_mnist, seed=9, val_size=10).fingerprint() == one
    (images, labels), test = tiny_digits
    for changed in ((images.clone().index_fill_(0, torch.tensor(7), 9), labels), (images, labels.flip(0))):
        for name, digits in (("train", changed), ("test", test)):
            write_text(Digits(*digits), tmp_path / name)
        files = {"train_file": str(tmp_path / "train"), "test_file": str(tmp_path / "test")}
        data = module(Path("nowhere"), source="text", **files)
        assert data.fingerprint() != one
        data.expected_fingerprint = one
        with pytest.raises(UserError, match="not those that the checkpoint was trained on"):
            data.setup("fit")


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batch_size": 0}, "--data.batch_size is 0; it must be at least 1"),
        ({"batch_size": -3}, "--data.batch_size is -3; it must be at least 1"),
        ({"val_size": -1}, "--data.val_size is -1; it must be at least 0"),
        ({"train_size": 0}, "--data.train_size is 0; it must be at least 1"),
        ({"val_size": 300}, "--data.val_size is 300, but there are only 300 training images"),
        ({"train_size": 251}, "--data.train_size is 251, but only 250 images are there"),
        ({"normalize": (0.1, 0.0)}, "--data.normalize: the standard deviation is 0.0; it must be above 0"),
        ({"source": "text"}, "--data.source text needs --data.train_file and --data.test_file"),
        ({"source": "text", "test_file": "x"}, "--data.source text needs --data.train_file"),
    ],
)
def test_bad_settings(options, expected: str, tiny_mnist: Path):
    assert message(BadSetting, root=tiny_mnist, **options) == expected


def test_exit_status_tells_bad_words_from_missing_files(tmp_path: Path, no_network, cli):
    assert main(["fit", "--data.batch_size", "0"]) == 2
    assert main(["fit", "--data.source", "mnist", "--data.root", str(tmp_path)]) == 1


# ---------------------------------------------------------------------- the real files


def test_real_mnist(real_mnist: Path):
    data = module(real_mnist, val_size=5000)
    assert data.mean_std == (0.1307, 0.3081)
    assert len(data.labels("train")) == 55_000
    assert len(data.labels("val")) == 5_000
    assert len(data.labels("test")) == 10_000
    assert len(data.train_dataloader()) == 1719


# ---------------------------------------------------------------------- some classes, and rare ones


def test_some_classes_are_numbered_anew_and_keep_their_names(tiny_mnist):
    whole, some = module(tiny_mnist), module(tiny_mnist, classes="8,3,5", val_size=10)
    assert (some.classes, some.names) == (3, ("3", "5", "8"))
    for split in ("train", "test"):
        all_of, kept = whole.read(split), some.read(split)
        expected = torch.cat([all_of.images[i : i + 1] for i, label in enumerate(all_of.labels) if label in (3, 5, 8)])
        assert torch.equal(kept.images, expected)
        names = [some.names[label] for label in kept.labels.tolist()]
        assert names == [str(label) for label in all_of.labels.tolist() if label in (3, 5, 8)]


@pytest.mark.parametrize("written", [[8, 3, 5], ["8", "3", "5"], "[8, 3, 5]", "['8', '3', '5']", "8, 3, 5"])
def test_classes_are_taken_as_yaml_and_python_write_them(tiny_mnist, written):
    given = parsed("fit", {"data.classes": written, "data.root": str(tiny_mnist), "data.val_size": 10})
    data = given.data.make()
    data.setup("fit")
    assert data.names == ("3", "5", "8")


def test_a_class_that_is_not_there_is_named(tiny_mnist):
    with pytest.raises(UserError, match="x"):
        module(tiny_mnist, classes="3,x")


def uneven(count: int = 400) -> tuple[Tensor, Tensor]:
    """Of class 0 nine in ten."""
    images, labels = synthetic_digits(count, 3)
    return images, torch.where(torch.arange(count) % 10 == 0, 1, 0).to(torch.uint8).where(labels < 99, labels)


@pytest.fixture
def imbalanced(tmp_path: Path) -> Path:
    return write_mnist(tmp_path / "uneven", uneven(), uneven(40))


def test_rare_classes_are_drawn_as_often(imbalanced):
    data = module(imbalanced, balance="draw", val_size=0)
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        epochs.append(seen(loader)[1])
    assert [labels.bincount().tolist() for labels in epochs] == [[200, 200]] * 2
    assert not torch.equal(*epochs)
    loader.set_epoch(0)
    assert torch.equal(seen(loader)[1], epochs[0])


def test_rare_classes_weigh_more(imbalanced):
    weights = module(imbalanced, balance="loss", val_size=0).for_model()["class_weights"]
    assert weights[0] * 360 == pytest.approx(weights[1] * 40, rel=1e-4)
