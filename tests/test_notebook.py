"""Sessions for real: a Jupyter kernel, IPython and Python at a prompt; `fit`, Ctrl-C, and what comes after it."""

import asyncio
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
PROJECT = str(Path(__file__).parents[1])
START = """
import os, random, signal
from mnist_lightning import fit
from mnist_lightning.cli import main
tiny = {"config": "simple_mlp", "model": {"hidden": [8]}, "data": {"source": "mnist", "root": ROOT}}
before = signal.getsignal(signal.SIGINT), random.getstate(), dict(os.environ)
"""
CELLS = [
    "fit(tiny, trainer={'max_epochs': 30}).best",
    "fit(tiny, trainer={'max_epochs': 100_000})",  # interrupted
    "assert (signal.getsignal(signal.SIGINT), random.getstate(), dict(os.environ)) == before",
    "import time; time.sleep(60)",  # interrupted
    "result = fit(tiny, run='a', trainer={'max_epochs': 2}); result.last",
    "import csv\nimport matplotlib.pyplot as plt\nrows = list(csv.DictReader(open(result.run / 'metrics.csv')))\n"
    "plt.plot([float(row['train_loss']) for row in rows if row['train_loss']]);",
    "main(['report'])",
    "fit(tiny, trainer={'devices': 2, 'accelerator': 'cpu', 'strategy': 'ddp'})",
    "fit(data={'batch_size': 0})",
]
KEPT = "checkpoints/simple_mlp-2/last.ckpt has everything"
STOPPED = f"stopped; {KEPT}: continue with --run simple_mlp-2 --ckpt_path last"


def wait_until(condition: Callable[[], object], patience: float = 120) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def session(tmp_path: Path, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a session starts with; the folder is that where it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", PROJECT)
    return START.replace("ROOT", repr(str(tiny_mnist)))


@pytest.mark.filterwarnings("default")
def test_a_notebook(session, tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    cells = [nbformat.v4.new_code_cell(text) for text in (session, *CELLS)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(notebook, timeout=200, kernel_name="python3", allow_errors=True)

    def interrupt(trained: str) -> None:
        rows = tmp_path / "checkpoints" / "simple_mlp-2" / "metrics.csv"
        wait_until(lambda: rows.exists() and rows.read_text().count("\n") > 3 if trained else time.sleep(1) or True)
        asyncio.run(client.km.interrupt_kernel())

    def on_cell(cell: Any, cell_index: int, **_: Any) -> None:
        if cell_index in (2, 4):
            threading.Thread(target=interrupt, args=("100_000" in cell.source,)).start()

    client.on_cell_execute = on_cell
    client.execute()
    outputs = [cell.outputs for cell in notebook.cells]
    errors = {
        number: (output.ename, output.evalue, output.traceback)
        for number, cell in enumerate(outputs)
        for output in cell
        if output.output_type == "error"
    }
    said = ["".join(output.text for output in cell if output.output_type == "stream") for cell in outputs]
    shown = [[output.data for output in cell if "data" in output] for cell in outputs]
    assert said[0] == ""
    assert said[1].count("epoch ") == 31  # a line each, and the table's
    assert [text for data in shown[1] for text in data.values()] == [  # one bar
        pytest.approx(shown[1][0]["text/plain"]), "PosixPath('checkpoints/simple_mlp/best.ckpt')",
    ]  # fmt: skip
    assert re.fullmatch(r"epoch 30/30 ━{24} loss \S+  \S+ images/s", shown[1][0]["text/plain"])
    assert errors.pop(2) == ("KeyboardInterrupt", STOPPED, [f"KeyboardInterrupt: {STOPPED}"])
    assert errors.pop(4)[0] == "KeyboardInterrupt"
    assert shown[5][-1]["text/plain"] == "PosixPath('checkpoints/a/last.ckpt')"
    assert "image/png" in shown[6][0]
    assert "simple_mlp-2" in said[7]
    assert errors.pop(8)[1].startswith("several processes cannot be started from a notebook")
    assert errors.pop(9)[2] == ["BadSetting: --data.batch_size is 0; it must be at least 1"]
    assert errors == {}


PROMPTS = {
    "python": ([sys.executable, "-i", "-q"], ">>> "),
    "ipython": ([sys.executable, "-m", "IPython", "--simple-prompt", "--no-banner"], r"In \[\d+\]: "),
}  # fmt: skip


@pytest.mark.parametrize("prompt", PROMPTS)
def test_at_a_prompt(prompt, session, tmp_path):
    pexpect = pytest.importorskip("pexpect")
    pytest.importorskip("IPython")
    command, ready = PROMPTS[prompt]
    environment = os.environ | {"TERM": "dumb", "PYTHON_BASIC_REPL": "1"}
    child = pexpect.spawn(command[0], command[1:], encoding="utf-8", timeout=120, env=environment, dimensions=(50, 300))

    def enter(line: str) -> str:
        child.sendline(line)
        child.expect(ready)
        return child.before

    child.expect(ready)
    for line in session.strip().splitlines():
        enter(line)
    words = "'--config', 'simple_mlp', '--data.root', tiny['data']['root'], '--run', 'a'"
    assert "0\r\n" in enter(f"main(['fit', {words}, '--trainer.max_epochs', '1'])")
    for call, left in (
        ("fit(tiny, run='b', trainer={'max_epochs': 100_000})", "KeyboardInterrupt: stopped; checkpoints/b/last"),
        (f"main(['fit', {words.replace(chr(39) + 'a', chr(39) + 'c')}, '--trainer.max_epochs', '100000'])", "130\r\n"),
        ("import time; time.sleep(60)", "KeyboardInterrupt"),
    ):  # fmt: skip
        child.sendline(call)
        if "time" not in call:
            child.expect("epoch 2/100")
        else:
            time.sleep(1)
        child.sendintr()
        child.expect(ready)
        assert left in child.before
    assert "True" in enter("(signal.getsignal(signal.SIGINT), random.getstate(), dict(os.environ)) == before")
    assert "checkpoints/b/last.ckpt" in enter("fit(run='b', ckpt_path='last', trainer={'max_epochs': 60}).last")
    child.sendline("exit()")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.signalstatus is None


def test_ctrl_c_while_a_session_imports_torch_does_not_end_it(session):
    pexpect = pytest.importorskip("pexpect")
    child = pexpect.spawn(
        sys.executable, ["-i", "-q"], encoding="utf-8", timeout=120, env=os.environ | {"TERM": "dumb"}
    )
    child.expect(">>> ")
    child.sendline("from mnist_lightning.cli import main")
    child.expect(">>> ")
    child.sendline("main(['fit', '--data.source', 'synthetic'])")
    status = Path(f"/proc/{child.pid}/status")
    taken = 1 << (signal.SIGTERM - 1)
    wait_until(lambda: int(status.read_text().split("SigCgt:")[1].split()[0], 16) & taken)
    child.sendintr()
    child.expect(">>> ")
    assert "mnist_lightning: stopped" in child.before
    assert "130" in child.before
    child.sendline("exit()")
    child.expect(pexpect.EOF)
