"""MNISTDataModule: where the digits come from, how they are divided, and how they become batches."""

import os
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from mnist_lightning.data.augment import Augment
from mnist_lightning.data.digits import TEN, Digits
from mnist_lightning.data.division import check_folds, divided, size_held_out
from mnist_lightning.data.download import download
from mnist_lightning.data.lent import lent
from mnist_lightning.data.loader import TensorLoader
from mnist_lightning.data.sources import Found, files_under, find, named, only, saw
from mnist_lightning.data.statistics import class_weights, fingerprint_of, mean_std_of
from mnist_lightning.data.synthetic import synthetic_digits
from mnist_lightning.data.tables import read_text
from mnist_lightning.errors import BadSetting, UserError

EVAL_BATCH_SIZE = 2500  # 8 MB of floats, which a processor's cache holds; Lightning's cost per batch hardly shows
FILE = {"train": "train", "val": "train", "test": "test"}  # validation images come from the training set
DRAWN_SEED = 2  # of digits drawn to be put to others; 0 and 1 are the synthetic source's


class MNISTDataModule(LightningDataModule):
    """Digits as `uint8` tensors on the training device, and loaders that cut batches from them.

    Args:
        root: Folder with digits in any form, or one such file, or a folder to download MNIST to ($MNIST_ROOT, else
            ./data).
        source: mnist (what lies in root, else a download), text (train_file and test_file), synthetic (drawn by
            the program), or auto: mnist if it can be had, else synthetic, said loudly.
        train_file: Tab-delimited text to train on, 784 values 0-255 and the label on a line (source text).
        test_file: The same for testing.
        batch_size: Images of one optimizer step, on each device.
        val_size: Training images held out for validation, chosen by a fixed seed; by default 5000, or a sixth where
            that is less.
        folds: Divide the training images into so many folds, by the same seed; one of them is held out.
        fold: Which of them, counted from 0; fit --folds trains on each in turn.
        train_size: Use only the first so many training images (after those for validation are taken out).
        drawn: How many digits drawn by the program are put to the training images: forms that MNIST has little of.
        augment: affine: each epoch sees the training images turned, scaled, slanted and moved a little anew; all: also
            bent, and with strokes thicker or thinner.
        normalize: mean and std of a pixel in [0, 1]; auto: those of the training images, to four decimals (0.1307
            and 0.3081 for MNIST); none: only divide by 255.
        seed: Seed of the order of the batches; by default that of the run.
        test_each_epoch: Also evaluate the test images each epoch, as articles plot them; never used to choose.
        subset: Which of several sets in root, by its name or a part of it, e.g. letters.
        label: Where in a table the label stands: auto, first, last, none, or the name of a column.
        cache: Keep what was read of a folder of pictures, so that it is read at once the next time.
        classes: Only images of these classes, by their names, e.g. 3,5,8.
        balance: loss: rare classes weigh more in training; draw: each epoch draws equally many images of each class.
    """

    names = TEN  # of the classes, whichever of them the files hold

    def __init__(
        self,
        root: str | None = None,
        source: Literal["auto", "mnist", "text", "synthetic"] = "auto",
        train_file: str | None = None,
        test_file: str | None = None,
        batch_size: int = 64,
        val_size: int | None = None,
        folds: int | None = None,
        fold: int | None = None,
        train_size: int | None = None,
        drawn: int = 0,
        augment: Literal["none", "affine", "all"] = "none",
        normalize: Literal["auto", "none"] | tuple[float, float] = "auto",
        seed: int | None = None,
        test_each_epoch: bool = False,
        subset: str | None = None,
        label: str = "auto",
        cache: bool = True,
        classes: str | list[str | int] | None = None,
        balance: Literal["none", "loss", "draw"] = "none",
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # the logger would mix them with the model's
        for name, least in (("batch_size", 1), ("val_size", 0), ("train_size", 1), ("drawn", 0)):
            value = self.hparams[name]
            if value is not None and value < least:
                raise BadSetting(f"--data.{name} is {value}; it must be at least {least}")
        check_folds(folds, fold)
        if source == "text" and not (train_file or test_file):
            raise BadSetting("--data.source text needs --data.train_file and --data.test_file")
        if seed is None:
            self.hparams["seed"] = int(os.environ.get("PL_GLOBAL_SEED", 0))  # that of Lightning's seed_everything
        self.mean_std: tuple[float, float] | None = (0.0, 1.0) if normalize == "none" else None
        if not isinstance(normalize, str):
            self.mean_std = (float(normalize[0]), float(normalize[1]))
            if normalize[1] <= 0:
                raise BadSetting(f"--data.normalize: the standard deviation is {normalize[1]}; it must be above 0")
        self.root = Path(root or os.environ.get("MNIST_ROOT") or "data")
        self.source = source  # becomes what `auto` was resolved to
        self.download_problem: str | None = None  # why `auto` fell back to synthetic digits
        self.expected_fingerprint: str | None = None  # a resumed run's training images
        self._fingerprint: str | None = None
        self.expected_names: tuple[str, ...] | None = None  # the classes of a network that is there already
        self.trained_on: str | None = None  # fingerprint of the images that it was trained on
        self._found: Found | None = None
        self._digits: dict[str, Digits] = {}
        self._subsets: dict[str, Tensor | None] = {}

    # ------------------------------------------------------------------ from files to tensors

    @property
    def classes(self) -> int:
        return len(self.names)

    def prepare_data(self) -> None:
        """Downloads where that is wanted; Lightning calls it once a machine."""
        if self.source not in ("auto", "mnist") or self._recognised() or self.download_problem is not None:
            return
        if self.source == "mnist" and files_under(self.root):
            raise UserError(f"{saw(self.root)}; to download MNIST, give a folder with nothing in it")
        try:
            download(self.root)
        except UserError as error:
            if self.source == "mnist":
                raise
            self.download_problem = str(error)

    def _recognised(self) -> Found | None:
        """What lies in the root; looked at again until there is something."""
        self._found = self._found or find(self.root, *(self.hparams[name] for name in ("subset", "label", "cache")))
        return self._found

    def setup(self, stage: str) -> None:
        training = stage in ("fit", "validate")
        if training or self.mean_std is None:
            train = self.read("train")
            self._divide(len(train.labels) - self.hparams["drawn"])
            self.mean_std = self.mean_std or mean_std_of(train.images)
        if not training or self.hparams["test_each_epoch"]:
            self.read("test")
            self._subsets["test"] = None
        if stage == "fit" and self.expected_fingerprint not in (None, self.fingerprint()):
            raise UserError(
                "the training images are not those that the checkpoint was trained on: give the same --data.root "
                "and --data.source, or start a new run without --ckpt_path"
            )

    def read(self, split: str) -> Digits:
        """All images of "train" or "test", from wherever they come, read once."""
        if split in self._digits:
            return self._digits[split]
        if self.source == "auto":
            self.source = "mnist" if self._recognised() else "synthetic"
        if known := lent(self, split):
            digits = known
        elif self.source == "synthetic":
            count, seed = (60_000, 0) if split == "train" else (10_000, 1)
            digits = Digits(*synthetic_digits(count, seed))
        elif self.source == "mnist":
            digits = self._read_files(split)
        elif file := self.hparams[f"{split}_file"]:
            digits = read_text(Path(file))
        else:
            raise BadSetting(f"--data.source text needs --data.{split}_file")
        digits = self._kept(digits)
        if split == "train" and (count := self.hparams["drawn"]):
            if digits.names != TEN:
                raise BadSetting("--data.drawn draws the ten digits; these are other classes")
            more = synthetic_digits(count, DRAWN_SEED)
            digits = digits._replace(
                images=torch.cat([digits.images, more[0]]), labels=torch.cat([digits.labels, more[1]])
            )
        self._digits[split], self.names = digits, digits.names
        return digits

    def _read_files(self, split: str) -> Digits:
        found = self._recognised()
        if not found:
            raise UserError(saw(self.root))
        if split == "test" and found.divided and self.trained_on:
            trained_on_these = self.trained_on == fingerprint_of(self.read("train"))
            return found.read(split) if trained_on_these else found.whole()  # of strange images all are for the test
        return found.read(split)

    def told(self) -> str | None:
        """What was recognised, in a line."""
        return self._found.told() if self.source == "mnist" and self._found else None

    def _kept(self, digits: Digits) -> Digits:
        """The images of the classes that are wanted, in the order of the network's classes."""
        wanted = self.hparams["classes"]
        if wanted is not None:
            words = wanted.strip("[]").split(",") if isinstance(wanted, str) else wanted  # also as YAML writes it
            digits = only(digits, [str(word).strip(" '\"") for word in words])
        if self.expected_names and digits.names != self.expected_names:
            held = {digits.names[at] for at in digits.labels.unique().tolist()}
            if strange := sorted(held - set(self.expected_names)):
                raise UserError(
                    f"{self.root} holds images of {', '.join(strange[:5])}, which the network does not know: it knows "
                    f"{', '.join(self.expected_names[:70])}; see --data.classes"
                )
            digits = named(digits, self.expected_names)
        return digits

    def _divide(self, images: int) -> None:
        """Chooses the validation images from so many training images."""
        given = self.hparams
        given["val_size"] = size_held_out(images, given["val_size"], given["folds"], given["fold"])
        first = given["fold"] * images // given["folds"] if given["folds"] else 0
        self._subsets |= divided(images, given["val_size"], given["train_size"], given["drawn"], first)

    # ------------------------------------------------------------------ from tensors to batches

    def train_dataloader(self) -> TensorLoader:
        return self._loader("train")

    def val_dataloader(self) -> TensorLoader | list[TensorLoader]:
        """The held-out images; with `test_each_epoch` the test images after them."""
        if self.hparams["test_each_epoch"] and self.trainer is not None and self.trainer.state.fn == "fit":
            return [self._loader("val"), self._loader("test")]
        return self._loader("val") if self.hparams["val_size"] else []

    def test_dataloader(self) -> TensorLoader:
        return self._loader("test")

    predict_dataloader = test_dataloader

    def images(self, split: str) -> Tensor:
        """Images of "train", "val" or "test", uint8 [N, 28, 28]."""
        images, subset = self._digits[FILE[split]].images, self._subsets[split]
        return images if subset is None else images[subset]

    def labels(self, split: str) -> Tensor:
        """Labels of "train", "val" or "test", uint8 [N]."""
        labels, subset = self._digits[FILE[split]].labels, self._subsets[split]
        return labels if subset is None else labels[subset]

    def counts(self) -> dict[str, int]:
        """How many training images there are of each class."""
        counts = self.labels("train").long().bincount(minlength=len(self.names)).tolist()
        return dict(zip(self.names, counts, strict=True))

    def for_model(self) -> dict[str, Any]:
        """Settings of DigitClassifier that follow from the data."""
        names = None if self.names == TEN else list(self.names)
        weighs = self.hparams["balance"] == "loss"
        weights = class_weights(self.labels("train"), self.classes) if weighs else None
        return {"classes": self.classes, "class_names": names, "class_weights": weights}

    def _loader(self, split: str) -> TensorLoader:
        file, training, trainer = FILE[split], split == "train", self.trainer
        if split not in self._subsets:  # no Trainer has called setup
            self.prepare_data()
            self.setup("test" if split == "test" else "fit")
        digits = self._digits[file]
        if trainer is not None:
            device = trainer.strategy.root_device
            # 55 MB for all of MNIST; a set that would crowd the model out stays in main memory
            if device.type == "cuda" and digits.images.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
                moved = Digits(digits.images.to(device), digits.labels.to(device), digits.names)
                digits = self._digits[file] = moved
        # --trainer.limit_val_batches and the like count batches of training's size
        limits = [repr(getattr(trainer, f"limit_{kind}_batches", 1.0)) for kind in ("val", "test", "predict")]
        counted = limits != ["1.0"] * 3
        return TensorLoader(
            digits.images,
            digits.labels,
            self._subsets[split],
            batch_size=self.hparams["batch_size"] if training or counted else EVAL_BATCH_SIZE,
            prepare=self.normalized,
            augment=Augment(self.hparams["augment"]) if training and self.hparams["augment"] != "none" else None,
            shuffle=training and not (trainer and trainer.overfit_batches),
            balanced=training and self.hparams["balance"] == "draw",
            seed=self.hparams["seed"],
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )

    def normalized(self, images: Tensor) -> Tensor:
        """uint8 [n, 28, 28] -> float32 [n, 1, 28, 28] with the mean and standard deviation of this data."""
        if self.mean_std is None:
            raise RuntimeError("call setup() first: mean and standard deviation are not known yet")
        mean, std = self.mean_std
        pixels = images.unsqueeze(1).to(torch.float32)
        return (pixels.sub_(255 * mean) if mean else pixels).div_(255 * std)

    # ------------------------------------------------------------------ what a checkpoint keeps

    def fingerprint(self) -> str:
        """Tells other training images from these; looks at all labels and at up to 1,000 images."""
        if self._fingerprint is None:  # each checkpoint holds it
            self._fingerprint = fingerprint_of(self._digits["train"])
        return self._fingerprint

    def state_dict(self) -> dict[str, Any]:
        """The resolved source, normalisation and training images, so that every tool can do as training did."""
        mean, std = self.mean_std or (0.0, 1.0)
        known = {"source": self.source, "mean": mean, "std": std, "classes": self.classes, "names": list(self.names)}
        return known | ({"fingerprint": self.fingerprint()} if "train" in self._digits else {})
