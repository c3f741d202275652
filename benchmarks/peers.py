"""Two peers' programs beside their recipes, each a whole command in a fresh process, in turns.

    python benchmarks/peers.py --write                              # 3 seeds, all epochs: two hours on 2 cores
    python benchmarks/peers.py --peers template_mlp --epochs 2 --seeds 5

The peers are written as their authors have them, with torchvision's data set out of memory in the place of a download:
pytorch/examples mnist/main.py as it runs with a GPU's settings (shuffled), and the module, data and callbacks of
ashleve/lightning-hydra-template without Hydra, whose own start is not counted. The template divides all 70,000 images
anew; here it trains on the first 55,000 and is tested on MNIST's 10,000, so that both sides' accuracies are of the same
images. Seconds an epoch are those of the whole command, imports and test included, divided by its epochs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from results import ROOT, machine, write_section

MNIST = Path(os.environ.get("MNIST_ROOT") or ROOT.parent / "shared" / "mnist")
EPOCHS = {"examples_cnn": 14, "template_mlp": 10}
HEADING = "Peers"


def data_sets() -> tuple[Any, Any]:
    """Training and test images as torchvision's MNIST hands them out with ToTensor and Normalize."""
    from PIL import Image
    from torch.utils.data import Dataset
    from torchvision import transforms

    from mnist_lightning.data.sources import read

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])

    class Items(Dataset):
        def __init__(self, split: str) -> None:
            digits = read(MNIST, split)
            self.data, self.targets = digits.images, digits.labels

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, index: int) -> Any:
            return transform(Image.fromarray(self.data[index].numpy())), int(self.targets[index])

    return Items("train"), Items("test")


def examples_cnn(epochs: int, seed: int) -> float:
    """Test accuracy of pytorch/examples."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, 1), nn.Conv2d(32, 64, 3, 1)
            self.dropout1, self.dropout2 = nn.Dropout(0.25), nn.Dropout(0.5)
            self.fc1, self.fc2 = nn.Linear(9216, 128), nn.Linear(128, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.conv2(F.relu(self.conv1(x))))
            x = self.dropout1(F.max_pool2d(x, 2))
            x = self.dropout2(F.relu(self.fc1(torch.flatten(x, 1))))
            return F.log_softmax(self.fc2(x), dim=1)

    torch.manual_seed(seed)
    train, test = data_sets()
    loader = torch.utils.data.DataLoader(train, batch_size=64, shuffle=True)
    test_loader = torch.utils.data.DataLoader(test, batch_size=1000)
    model, correct = Net(), 0
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    for epoch in range(epochs):
        model.train()
        for index, (data, target) in enumerate(loader):
            optimizer.zero_grad()
            loss = F.nll_loss(model(data), target)
            loss.backward()
            optimizer.step()
            if index % 10 == 0:
                print(f"Train Epoch: {epoch + 1} [{index * len(data)}/{len(train)}]\tLoss: {loss.item():.6f}")
        model.eval()
        with torch.no_grad():
            correct = sum((model(data).argmax(1) == target).sum().item() for data, target in test_loader)
        scheduler.step()
    return correct / len(test)


def template_mlp(epochs: int, seed: int) -> float:
    """Test accuracy of lightning-hydra-template."""
    import lightning as pl
    import torch
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichModelSummary, RichProgressBar
    from lightning.pytorch.loggers import CSVLogger
    from torch import nn
    from torch.utils.data import DataLoader, Subset
    from torchmetrics import MaxMetric, MeanMetric
    from torchmetrics.classification import MulticlassAccuracy

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(784, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(),
                nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10),
            )  # fmt: skip
            self.criterion, self.best = nn.CrossEntropyLoss(), MaxMetric()
            self.acc = nn.ModuleDict(
                {split: MulticlassAccuracy(10, average="micro") for split in ("tr", "val", "test")}
            )
            self.losses = nn.ModuleDict({split: MeanMetric() for split in ("tr", "val", "test")})

        def step(self, split: str, batch: Any) -> torch.Tensor:
            x, y = batch
            logits = self.net(x.view(x.size(0), -1))
            loss = self.criterion(logits, y)
            self.losses[split](loss)
            self.acc[split](logits.argmax(1), y)
            self.log(f"{split}/loss", self.losses[split], on_step=False, on_epoch=True, prog_bar=True)
            self.log(f"{split}/acc", self.acc[split], on_step=False, on_epoch=True, prog_bar=True)
            return loss

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.step("tr", batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.step("val", batch)

        def on_validation_epoch_end(self) -> None:
            self.best(self.acc["val"].compute())
            self.log("val/acc_best", self.best.compute(), sync_dist=True, prog_bar=True)

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.step("test", batch)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=0.001, weight_decay=0.0)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="min", factor=0.1, patience=10)
            scheduler = {"scheduler": plateau, "monitor": "val/loss", "interval": "epoch", "frequency": 1}
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

    pl.seed_everything(seed)
    train, test = data_sets()
    loaders = [
        DataLoader(part, batch_size=128, shuffle=shuffle)
        for part, shuffle in ((Subset(train, range(55_000)), True), (Subset(train, range(55_000, 60_000)), False))
    ]
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [
            ModelCheckpoint(folder, monitor="val/acc", mode="max", save_last=True, auto_insert_metric_name=False),
            EarlyStopping("val/acc", mode="max", patience=100), RichModelSummary(max_depth=-1), RichProgressBar(),
        ]  # fmt: skip
        trainer = pl.Trainer(
            min_epochs=1, max_epochs=epochs, accelerator="cpu", callbacks=callbacks, logger=CSVLogger(folder),
            default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(Module(), *loaders)
        found = trainer.test(dataloaders=DataLoader(test, batch_size=128), ckpt_path="best")
    return found[0]["test/acc"]


PROGRAMS = {"examples_cnn": examples_cnn, "template_mlp": template_mlp}


def theirs(peer: str, epochs: int, seed: int) -> tuple[float, float]:
    """Seconds an epoch of the peer's program, and its test accuracy in percent."""
    command = [sys.executable, __file__, "--program", peer, "--epochs", str(epochs), "--seed", str(seed)]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return (time.perf_counter() - start) / epochs, 100 * json.loads(done.stdout.splitlines()[-1])


def ours(peer: str, epochs: int, seed: int, *more: str) -> tuple[float, float]:
    """The same of the recipe."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mnist_lightning", "fit", "--config", peer, "--run", "a", "--seed", str(seed)]
        command += ["--data.root", str(MNIST), "--trainer.max_epochs", str(epochs)]
        start = time.perf_counter()
        subprocess.run(
            [*command, "--trainer.default_root_dir", folder, *more], cwd=ROOT, stdout=subprocess.DEVNULL, check=True
        )
        seconds = (time.perf_counter() - start) / epochs
        return seconds, 100 * json.loads((Path(folder) / "a" / "test.json").read_text())["accuracy"]


def cell(values: list[float], form: str) -> str:
    return f"{statistics.mean(values):{form}}" + (f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else "")


def measure(peer: str, epochs: int, seeds: int) -> list[str]:
    """The rows of a peer: its program, the recipe, the recipe in bf16."""
    ways = {
        "its program": theirs,
        "recipe": ours,
        "recipe, bf16-mixed": lambda *asked: ours(*asked, "--trainer.precision", "bf16-mixed"),
    }
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for seed in range(seeds):
        names = list(ways)
        for way in names[seed % 3 :] + names[: seed % 3]:  # none has the quiet moments
            found[way].append(ways[way](peer, epochs, seed))
            print(peer, way, seed, *(f"{value:.2f}" for value in found[way][-1]), flush=True)
    rows = []
    for way, runs in found.items():
        seconds, accuracies = map(list, zip(*runs, strict=True))
        rows.append(f"| {peer} | {way} | {cell(accuracies, '.2f')} | {cell(seconds, '.2f')} | {epochs} | {seeds} |")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="by default those of the peer")
    parser.add_argument("--program", choices=PROGRAMS, help="run this program here, and print its accuracy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    if options.program:
        print(json.dumps(PROGRAMS[options.program](options.epochs, options.seed)))
        raise SystemExit
    lines = ["| peer | what runs | test % | seconds an epoch | epochs | n |", "| --- | --- | --- | --- | --- | --- |"]
    for peer in options.peers:
        lines += measure(peer, options.epochs or EPOCHS[peer], options.seeds)
    print("\n".join(lines))
    if options.write:
        command = " ".join(["python benchmarks/peers.py", *sys.argv[1:]])
        write_section(HEADING, [f"`{command}`", "", machine(), "", *lines])
