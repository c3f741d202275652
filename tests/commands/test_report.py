"""`report`: tables of all runs and of one, whatever columns metrics.csv has."""

import subprocess
import sys
from pathlib import Path

from outcome import RUNS, column, one_line, outcome


def cells(out: str) -> dict[str, list[str]]:
    """The cells of each row of a table, by the first."""
    lines = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in lines}


def run(name: str, table: str) -> None:
    folder = RUNS / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    (folder / "metrics.csv").write_text(table)


def test_runs_of_fit(fit, cli):
    fit("--run", "a", "--trainer.max_epochs", 3)
    fit("--run", "[b]")
    table, accuracy = cells(cli("report").out), outcome("a")["accuracy"]
    assert table["a"] == ["3", f"{max(column('a', 'val_acc')):.2%}", f"{accuracy:.2%}", "mnist"]
    assert "[b]" in table
    out = cli("report", "--run", "a").out
    assert list(cells(out)) == ["1", "2", "3"]
    assert all(f"{loss:.4f}" in out for loss in column("a", "val_loss"))
    assert f"test: {accuracy:.2%} of 100 images of mnist\n" in out


def test_any_columns(cli):
    run("callbacks", "epoch,step,lr-Adam,val_acc,note\n0,9,0.1,,\n,12,0.2,,\n0,19,,0.5,good\n1,39,,0.75,\n")
    run("theirs", "a,b\n1,2\n")
    run("early", "epoch,step,train_loss_step,lr,images\n0,49,0.5,0.1,100\n")
    run("empty", "")
    table = cells(cli("report").out)
    assert table == {
        "callbacks": ["2", "75.00%", "", ""],
        "theirs": ["1", "", "", ""],
        "early": ["0", "", "", ""],
        "empty": ["0", "", "", ""],
    }
    out = cli("report", "--run", "callbacks").out
    assert cells(out) == {"1": ["50.00%", "0.2", "good"], "2": ["75.00%", "", ""]}
    assert "val_acc ┃ lr-Adam ┃ note" in out


def test_damaged_files(cli):
    run("a", "epoch,val_acc\n0,0.5\n")
    (RUNS / "a" / "test.json").write_text('{"accuracy": "high"}')
    assert "is damaged" in cli("report").out
    result = cli("report", "--run", "a")
    assert (result.status, one_line(result)) == (1, "checkpoints/a: metrics.csv or test.json is damaged")


def test_words(cli):
    assert one_line(cli("report")).startswith("there is no run in checkpoints")
    assert one_line(cli("report", "--rnu", "a")) == "there is no flag --rnu; did you mean --run?"
    result = cli("report", "--help")
    assert (result.status, "--trainer.default_root_dir" in result.out) == (0, True)


def test_it_does_not_import_torch():
    code = "import sys; from mnist_lightning.cli import main; main(['report']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, capture_output=True)
