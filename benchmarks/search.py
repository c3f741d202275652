"""What `search` finds and costs, and that it loses no trial: killed at random, from three terminals, on two machines.

    python benchmarks/search.py found --recipe cnn --minutes 20 --write
    python benchmarks/search.py pace --recipe simple_mlp --trials 12 --write
    python benchmarks/search.py kills --workers 10 --kills 20 --write
    python benchmarks/search.py terminals --write
    python benchmarks/search.py machines --write        as root: two network namespaces and a PostgreSQL of Debian's

`found` says with n and std what the search made of a recipe. `pace` trains the same trials by `search` and one after
the other, each in a process of its own with all cores. Exit status 1 where something is not as it should be.
"""

import argparse
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from results import ROOT, machine, write_section

MNIST = Path(os.environ.get("MNIST_ROOT") or ROOT.parent / "shared" / "mnist")
PACKAGE = [sys.executable, "-m", "mnist_lightning"]
SMALL = "--config simple_mlp --data.train_size 4000 --data.val_size 1000 --trainer.max_epochs 6 --pruner none --best 0"
EPOCHS = 6  # of SMALL
ALONE = """
import sys
from mnist_lightning.commands import guest
from mnist_lightning.commands.fit import train_one
from mnist_lightning.words import pairs_of_words
with guest(program=True) as signals:
    signals.imported()
    train_one(pairs_of_words(sys.argv[1:]), signals, test=False)
"""


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"MNIST_ROOT": str(MNIST), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}


def start(folder: Path, log: Path, words: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A terminal in which the search is called."""
    with log.open("a") as file:
        return subprocess.Popen(
            [*before, *PACKAGE, "search", *shlex.split(words)],
            cwd=folder, stdout=file, stderr=subprocess.STDOUT, text=True, env=environment(),
        )  # fmt: skip


def report(folder: Path, study: str, *words: str) -> dict[str, Any]:
    command = [*PACKAGE, "report", study, "--json", *words]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def lost_or_twice(found: dict[str, Any], trials: int) -> list[str]:
    """What is wrong with a study of so many trials that were all trained to their end."""
    wrong = []
    if [trial["trial"] for trial in found["trials"]] != list(range(trials)):
        wrong.append(f"trials {[trial['trial'] for trial in found['trials']]}")
    for trial in found["trials"]:
        epochs = list(map(int, trial["epochs"]))
        if trial["state"] != "complete" or epochs != list(range(1, EPOCHS + 1)):
            wrong.append(f"trial {trial['trial']}: {trial['state']}, epochs {epochs}")
    return wrong


def ended(logs: list[Path]) -> list[Counter[int]]:
    """How often each terminal told the end of each trial."""
    return [Counter(map(int, re.findall(r"^trial(\d+): ", log.read_text(), re.M))) for log in logs]


# ---------------------------------------------------------------------- what it finds


def found(options: argparse.Namespace, folder: Path) -> tuple[str, list[str], bool]:
    words = f"--config {options.recipe} --minutes {options.minutes} --trials 10000 --study s"
    began, log = time.monotonic(), folder / "log"
    status = start(folder, log, words).wait()
    took = (time.monotonic() - began) / 60
    if status:
        raise SystemExit(log.read_text()[-2000:])
    told, counts = report(folder, "s"), Counter[str]()
    counts.update(told["counts"])
    finished = counts["complete"] + counts["pruned"] + counts["fail"]
    lines = [
        "| settings | validation % | std | n | beside the start | what differs |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    start_values = next((one["values"] for one in told["final"] if one["settings"] == "start"), {})
    for one in sorted(told["final"], key=lambda one: -one["mean"]):
        differences = [
            100 * (value - start_values[seed]) for seed, value in one["values"].items() if seed in start_values
        ]
        beside = "" if one["settings"] == "start" else f"{sum(differences) / len(differences):+.2f}"
        differs = ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in one["params"].items()
        )
        std = "" if one["std"] is None else f"{100 * one['std']:.2f}"
        lines.append(
            f"| {one['settings']} | {100 * one['mean']:.2f} | {std} | {len(one['values'])} | {beside} | {differs} |"
        )
    test = told["test"]
    tested = ", ".join(f"{100 * one:.2f}" for one in test["accuracies"]) if test else "not tested"
    shares = ", ".join(f"{name} {share:.0%}" for name, share in told["importance"].items())
    lines += [
        "",
        f"{finished} trials in {options.minutes:g} minutes ({counts['pruned']} pruned, {counts['fail']} failed), "
        f"{finished / options.minutes:.1f} a minute; with the end {took:.0f} minutes. Test accuracy of "
        f"{told['winner']}, looked at once: {tested} %. What made trials differ: {shares or 'too few to tell'}.",
        "",
        machine(),
    ]
    return f"What search finds for {options.recipe}", lines, True


# ---------------------------------------------------------------------- its pace


def pace(options: argparse.Namespace, folder: Path) -> tuple[str, list[str], bool]:
    words = f"--config {options.recipe} --trials {options.trials} --study s --pruner none --best 0"
    words += f" --trainer.max_epochs {options.epochs}" if options.epochs else ""
    began = time.monotonic()
    if start(folder, folder / "log", words).wait():
        raise SystemExit((folder / "log").read_text()[-2000:])
    together = time.monotonic() - began
    trials = report(folder, "s")["trials"]
    began = time.monotonic()
    for trial in trials:
        given = [
            word for name, value in trial["params"].items() for word in (f"--{name}", json.dumps(value).strip('"'))
        ]
        given += ["--config", options.recipe, "--data.val_size", "5000", "--run", f"alone{trial['trial']}"]
        given += ["--trainer.max_epochs", str(options.epochs)] if options.epochs else []
        given += ["--trainer.logger", "false", "--trainer.enable_model_summary", "false"]
        subprocess.run([sys.executable, "-c", ALONE, *given], cwd=folder, env=environment(), check=True, stdout=-3)
    alone = time.monotonic() - began
    lines = ["| | trials a minute |", "| --- | --- |"]
    lines += [f"| search, its start and its imports counted | {60 * len(trials) / together:.2f} |"]
    lines += [f"| one after the other, a process each | {60 * len(trials) / alone:.2f} |"]
    lines += ["", f"{alone / together:.2f} times as many, of the same {len(trials)} trials. {machine()}"]
    return f"Pace of search, {options.recipe}", lines, alone / together >= 1.5


# ---------------------------------------------------------------------- what it survives


def kills(options: argparse.Namespace, folder: Path) -> tuple[str, list[str], bool]:
    rng, words = random.Random(options.seed), f"{SMALL} --trials {options.trials} --study s --jobs 1"
    logs = [folder / f"log{number}" for number in range(options.workers)]
    terminals = [start(folder, log, words) for log in logs]
    hit, began = Counter[str](), time.monotonic()
    runs = folder / "checkpoints" / "s" / "trials"
    while any(terminal.poll() is None for terminal in terminals):
        time.sleep(rng.uniform(0.5, 4))
        alive = [number for number, terminal in enumerate(terminals) if terminal.poll() is None]
        if sum(hit.values()) < options.kills and alive and runs.exists():
            number = rng.choice(alive)
            children = Path(f"/proc/{terminals[number].pid}/task/{terminals[number].pid}/children")
            workers = list(map(int, children.read_text().split())) if children.exists() else []
            whom = rng.choice(["search", "worker"]) if workers else "search"
            os.kill(terminals[number].pid if whom == "search" else workers[0], signal.SIGKILL)
            hit[whom] += 1
        for number, terminal in enumerate(terminals):
            if terminal.poll() == -signal.SIGKILL:
                terminals[number] = start(folder, logs[number], words)
        if time.monotonic() - began > 3600:
            break
    statuses = Counter(terminal.wait() for terminal in terminals)
    wrong = lost_or_twice(report(folder, "s"), options.trials)
    told = sum(ended(logs), Counter())
    wrong += [f"trial {number} was told {count} times" for number, count in told.items() if count > 1]
    wrong += [f"{log.name} has a traceback" for log in logs if "Traceback" in log.read_text()]
    starts = [len(re.findall('"started"', file.read_text())) for file in runs.glob("*/sessions.jsonl")]
    lines = [
        f"{sum(hit.values())} SIGKILLs at random moments ({hit['search']} of searches, {hit['worker']} of workers) "
        f"among {options.workers} terminals with one study of {options.trials} trials, seed {options.seed}: "
        f"{sum(count > 1 for count in starts)} trials went on from a checkpoint, "
        f"{'none was lost or counted twice' if not wrong else '; '.join(wrong)}; exit statuses {dict(statuses)}, "
        f"{(time.monotonic() - began) / 60:.0f} minutes.",
    ]
    return "Search: kills", lines, not wrong and set(statuses) == {0}


def terminals(options: argparse.Namespace, folder: Path) -> tuple[str, list[str], bool]:
    words, logs = f"{SMALL} --trials {options.trials} --study s --jobs 1", [folder / f"log{n}" for n in range(3)]
    statuses = [terminal.wait() for terminal in [start(folder, log, words) for log in logs]]
    wrong, each = lost_or_twice(report(folder, "s"), options.trials), ended(logs)
    wrong += [f"{number} twice" for number, count in sum(each, Counter()).items() if count != 1]
    shares = ", ".join(str(sum(one.values())) for one in each)
    told = f"Three terminals and one journal, {options.trials} trials: {shares} each; " + (
        "; ".join(wrong) or "each once"
    )
    return "Search: three terminals", [told], not wrong and statuses == [0, 0, 0]


# ---------------------------------------------------------------------- machines that share nothing


def call(*words: str, **options: Any) -> None:
    subprocess.run(words, check=True, **options)


@contextmanager
def namespaces() -> Iterator[list[tuple[str, str]]]:
    """Two machines, each with a cable to this one: name of each, and the address at which it sees this one."""
    made = [(f"search{number}", f"10.213.{number}.1") for number in (1, 2)]
    try:
        for number, (name, address) in enumerate(made, 1):
            call("ip", "netns", "add", name)
            call("ip", "link", "add", f"cable{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            call("ip", "address", "add", f"{address}/24", "dev", f"cable{number}")
            call("ip", "link", "set", f"cable{number}", "up")
            inside = ("ip", "netns", "exec", name, "ip")
            call(*inside, "address", "add", f"10.213.{number}.2/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                call(*inside, "link", "set", device, "up")
        yield made
    finally:
        for name, _ in made:
            subprocess.run(["ip", "netns", "del", name], check=False)


@contextmanager
def postgres(folder: Path, port: int) -> Iterator[None]:
    """A PostgreSQL that both machines reach."""
    home, program = folder / "postgres", sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    home.mkdir()
    folder.chmod(0o711)
    call("chown", "postgres", str(home))
    run = ("runuser", "-u", "postgres", "--")
    quiet = {"cwd": home, "stdout": subprocess.DEVNULL}
    call(*run, str(program / "initdb"), "-D", str(home / "data"), "-A", "trust", "-U", "digits", **quiet)
    with (home / "data" / "pg_hba.conf").open("a") as file:
        file.write("host all all 10.213.0.0/16 trust\n")
    control = (*run, str(program / "pg_ctl"), "-D", str(home / "data"), "-w")
    call(*control, "-l", str(home / "log"), "-o", f"-p {port} -h '*' -k {home}", "start", **quiet)
    try:
        yield
    finally:
        call(*control, "-m", "immediate", "stop", **quiet)


def machines(options: argparse.Namespace, folder: Path) -> tuple[str, list[str], bool]:
    with ExitStack() as stack:
        made = stack.enter_context(namespaces())
        stack.enter_context(postgres(folder, 54329))
        searches, logs = [], []
        for name, address in made:
            (folder / name).mkdir()
            logs.append(folder / f"{name}.log")
            storage = f"--storage postgresql://digits@{address}:54329/postgres"
            words = f"{SMALL} --trials {options.trials} --study s --jobs 1 {storage}"
            searches.append(start(folder / name, logs[-1], words, ("ip", "netns", "exec", name)))
        pulled = 0.0
        while not pulled and searches[1].poll() is None:  # the cable of one, in the midst of a trial
            time.sleep(0.2)
            if len(ended(logs[1:])[0]) >= 2:
                call("ip", "link", "set", "cable2", "down")
                pulled = time.monotonic()
        statuses = [search.wait(600) for search in searches]
        took = time.monotonic() - pulled
        (folder / "checkpoints" / "s" / "trials").mkdir(parents=True)
        told = report(folder, "s", "--storage", f"postgresql://digits@{made[0][1]}:54329/postgres")
    wrong, each = lost_or_twice(told, options.trials), ended(logs)
    wrong += [f"{number} twice" for number, count in sum(each, Counter()).items() if count > 1]
    last = logs[1].read_text().strip().splitlines()[-1]
    lines = [
        f"Two network namespaces with folders of their own and one PostgreSQL, {options.trials} trials: "
        f"{', '.join(str(sum(one.values())) for one in each)} each; the cable of the second was pulled in the midst of "
        f"its third, which the first took back, and was done {took:.0f} s later. {'; '.join(wrong) or 'Each once'}.",
        "",
        f"The second ended with status {statuses[1]}: `{last}`",
    ]
    return "Search: two machines", lines, not wrong and statuses == [0, 1] and "Traceback" not in logs[1].read_text()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["found", "pace", "kills", "terminals", "machines"])
    parser.add_argument("--recipe", default="cnn", help="for found and pace")
    parser.add_argument("--minutes", type=float, default=20, help="of found, without its end")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--epochs", type=int, help="of pace, if not the recipe's")
    parser.add_argument("--workers", type=int, default=10, help="of kills")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills")
    parser.add_argument("--keep", action="store_true", help="keep the folder, and say where it is")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the namespaces and the database go, too
    folder = Path(tempfile.mkdtemp(prefix="search-"))
    heading, lines, right = globals()[options.what](options, folder)
    print("\n".join(lines))
    if options.write:
        words = " ".join(word for word in sys.argv[1:] if word != "--keep")
        write_section(heading, [f"`python benchmarks/search.py {words}`", "", *lines])
    if options.keep or not right:
        print(f"logs and runs: {folder}")
    else:
        subprocess.run(["rm", "-rf", str(folder)], check=False)
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
