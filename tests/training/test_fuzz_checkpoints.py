"""Files from strangers: each loads right or is refused in one line; no code runs, nothing grows out of proportion.

FUZZ_N=1000 python -m pytest tests/training/test_fuzz_checkpoints.py
"""

import copy
import hashlib
import io
import os
import pickle
import random
import resource
import struct
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from processes import NET
from samples import content_of_3207afc, trained

from mnist_lightning.errors import UserError
from mnist_lightning.training.checkpoints import COMMENT, MARK, load_model, read_checkpoint, write_checkpoint

N = int(os.environ.get("FUZZ_N", 150))
SECONDS, MEGABYTES = 10.0, 300  # for one file of 0.2 MB: what loading takes at the most


def sealed(body: bytes) -> bytes:
    """With a checksum that is right, as somebody would make it who means it."""
    return body + MARK + hashlib.sha256(body).hexdigest().encode()


def archive(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip with room said for the comment, sealed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members:
            file.writestr(name, data)
    return sealed(buffer.getvalue()[:-2] + COMMENT.to_bytes(2, "little"))


def members_of(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return [(name, file.read(name)) for name in file.namelist()]


@pytest.fixture(scope="module", params=[trained, content_of_3207afc])
def good(request, tmp_path_factory) -> Path:
    """A checkpoint of a CNN, of today and of commit 3207afc."""
    file = tmp_path_factory.mktemp("good") / "last.ckpt"
    write_checkpoint(request.param(), file)
    return file


@pytest.fixture
def canary(tmp_path, monkeypatch) -> Path:
    """A file that hostile code makes, and a module that makes it when it is imported."""
    sign = tmp_path / "sung"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "canary_module.py").write_text(
        f"open({str(sign)!r}, 'w')\n\ndef sing(*a):\n    open({str(sign)!r}, 'w')\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    return sign


def hostile_pickles(sign: Path) -> list[bytes]:
    """Pickles that do something when a naive program loads them."""
    text = str(sign).encode()
    touch = b"touch " + text
    code = b"open('" + text + b"','w')"
    call = b"\x8c" + bytes([len(touch)]) + touch + b"\x85R."
    found = [
        b"cos\nsystem\n(S'" + touch + b"'\ntR.",
        b"cposix\nsystem\n(S'" + touch + b"'\ntR.",
        b'cbuiltins\neval\n(S"' + code + b'"\ntR.',
        b'cbuiltins\nexec\n(S"' + code + b'"\ntR.',
        b"cbuiltins\n__import__\n(S'canary_module'\ntR.",
        b"ccanary_module\nsing\n)R.",
        b"(S'" + touch + b"'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93" + call,
        b"\x80\x04\x8c\x0dcanary_module\x8c\x04sing\x93)R.",
        b"cimportlib\nimport_module\n(S'canary_module'\ntR.",
        b"ctorch.serialization\nload\n(S'" + text + b"'\ntR.",
        b"ctorch.jit\nload\n(S'" + text + b"'\ntR.",
        b"cpathlib\nPath\n(S'" + text + b"'\ntR.",
        b"cshutil\nrmtree\n(S'" + text + b"'\ntR.",
        b"ctorch._dynamo.guards\nGuardBuilder\n.",
        b"cfunctools\npartial\n(cos\nsystem\nS'" + touch + b"'\ntR.",
        b"\x80\x02}\x82\x01.",  # an extension of copyreg
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x09\x00\x00\x00__class__ccanary_module\nsing\nsb.",
    ]

    class Evil:
        def __reduce__(self):
            return os.system, (touch.decode(),)

    for protocol in range(6):
        found.append(pickle.dumps({"state_dict": Evil()}, protocol))
    return found


def bombs() -> list[bytes]:
    """Pickles that are small and would be large, or never end."""
    shared = b"\x80\x02]q\x00" + b"".join(
        b"](" + b"h" + bytes([i]) + (b"h" + bytes([i])) * 9 + b"eq" + bytes([i + 1]) for i in range(60)
    )
    cycle: list = []
    cycle.append(cycle)
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    number = b"\x80\x02\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000 + b"."
    length = b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x."  # says that it holds a terabyte
    encoded = b"\x80\x02c_codecs\nencode\nc__builtin__\nbytearray\nJ\0\0\0\x40\x85RX\x03\0\0\0hex\x86R."  # torch does
    return [shared + b".", pickle.dumps(cycle, 2), deep, number, length, encoded, b"\x80\x02" + b"2" * 1000, b"", b"."]


def tensors(data: bytes) -> list[bytes]:
    """The good pickle with the first tensor's size, stride or offset replaced by one that its bytes do not have."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        name = next(n for n in file.namelist() if n.endswith("data.pkl"))
        text = file.read(name)
    found = []
    at = text.index(b"K\x04K\x01K\x03K\x03")  # the size (4, 1, 3, 3) of the first convolution
    for new in (
        b"J\xff\xff\xff\x7fK\x01K\x03K\x03",
        b"J\xff\xff\xff\x7f" * 4,
        b"J\xff\xff\xff\xffK\x01K\x03K\x03",
        b"NNNN",
    ):
        found.append(text[:at] + new + text[at + 8 :])
    return found


def with_pickle(data: bytes, text: bytes) -> bytes:
    return archive([(name, text if name.endswith("data.pkl") else content) for name, content in members_of(data)])


WRONG = [
    "x",
    -1,
    10**9,
    2**62,
    2**70,
    1.5,
    float("nan"),
    None,
    True,
    [],
    {},
    [1, 2],
    {"a": 1},
    "../../etc",
    torch.zeros(3),
]


def places(value, path=()):
    """The way to every entry of a checkpoint."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def with_wrong_entry(checkpoint: dict, rng: random.Random) -> tuple[dict, str]:
    changed = copy.deepcopy(checkpoint)
    ways = list(places(changed))
    by_group = rng.choice(sorted({way[0] for way in ways}))  # a state_dict has many entries; the others count as much
    *way, last = rng.choice([way for way in ways if way[0] == by_group])
    place = changed
    for key in way:
        place = place[key]
    if rng.random() < 0.2:
        del place[last]
        return changed, f"{[*way, last]} gone"
    place[last] = rng.choice(WRONG)
    return changed, f"{[*way, last]} = {place[last]!r}"


def mutation(number: int, data: bytes, checkpoint: dict, sign: Path, file: Path) -> str:
    """Writes the `number`-th bad file; says what is wrong with it."""
    rng = random.Random(number)
    kind = number % 8
    body = data[:-COMMENT]
    if kind == 0:
        file.write_bytes(data[: rng.randrange(len(data))])
        return "truncated"
    if kind in (1, 2):
        flipped = bytearray(body if kind == 2 else data)
        for _ in range(rng.choice([1, 1, 5, 100])):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        file.write_bytes(sealed(bytes(flipped)) if kind == 2 else flipped)
        return "bits flipped" + (", checksum right" if kind == 2 else "")
    if kind == 3:
        members = members_of(data)
        a, b = rng.sample(range(len(members)), 2)
        way = rng.choice(["swapped", "gone", "twice", "packed"])
        if way == "swapped":
            members[a], members[b] = (members[a][0], members[b][1]), (members[b][0], members[a][1])
        elif way == "gone":
            del members[a]
        elif way == "twice":
            members.append((members[a][0] + ".pkl", members[b][1]))
        else:
            members[a] = (members[a][0], bytes(200_000_000))
        file.write_bytes(archive(members, zipfile.ZIP_DEFLATED if way == "packed" else zipfile.ZIP_STORED))
        return f"members {way}"
    if kind == 4:
        file.write_bytes(with_pickle(data, rng.choice(hostile_pickles(sign))))
        return "hostile"
    if kind == 5:
        file.write_bytes(with_pickle(data, rng.choice([*bombs(), *tensors(data)])))
        return "bomb"
    changed, told = with_wrong_entry(checkpoint, rng)
    write_checkpoint(changed, file)
    return told


def loads_or_refuses(file: Path, told: str) -> bool:
    """Whether it loads. Otherwise it is refused in one line; nothing else comes out."""
    began = time.monotonic()
    try:
        load_model(file)
        return True
    except UserError as error:
        assert "\n" not in str(error), told  # noqa: PT017
        assert str(file) in str(error), told  # noqa: PT017
        return False
    finally:
        assert time.monotonic() - began < SECONDS, told


@pytest.mark.filterwarnings("ignore::UserWarning")  # zipfile's, of a name that is there twice
@pytest.mark.slow
def test_mutated_checkpoints(good, canary, tmp_path):
    data = (good).read_bytes()
    checkpoint = read_checkpoint(good)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = 0
    for number in range(N):
        file = tmp_path / "x.ckpt"
        file.unlink(missing_ok=True)
        told = mutation(number, data, checkpoint, canary, file)
        ok = loads_or_refuses(file, f"{number}: {told}")
        loaded += ok
        assert not canary.exists(), f"{number}: {told} ran code"
        if told in ("truncated", "bits flipped", "hostile", "bomb"):
            assert not ok, f"{number}: {told} was loaded"
    assert "canary_module" not in sys.modules
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES
    assert 0 < loaded < N / 2  # e.g. another learning rate, or another weight, is as good a checkpoint


def test_every_hostile_pickle_and_bomb(good, canary, tmp_path):
    data = (good).read_bytes()
    file = tmp_path / "x.ckpt"
    for number, text in enumerate([*hostile_pickles(canary), *bombs(), *tensors(data)]):
        file.write_bytes(with_pickle(data, text))
        assert not loads_or_refuses(file, str(number)), number
        assert not canary.exists(), number
    assert "canary_module" not in sys.modules


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("rename", [str, str.upper])
def test_a_second_pickle_hides_no_first(good, tmp_path, rename):
    members = members_of(good.read_bytes())
    name, text = next(member for member in members if member[0].endswith("data.pkl"))
    first = (name.replace("data.pkl", rename("data.pkl")), b"\x80\x02c__builtin__\nbytearray\nJ\0\0\0\x40\x85R.")
    (tmp_path / "x.ckpt").write_bytes(archive([first, (name, text), *members]))
    with pytest.raises(UserError, match="it names __builtin__ bytearray"):
        load_model(tmp_path / "x.ckpt")


def test_the_mutations_are_dangerous_to_others(canary):
    """What the tests above prove is worth something only if the pickles work."""
    for text in hostile_pickles(canary):
        canary.unlink(missing_ok=True)
        sys.modules.pop("canary_module", None)
        try:
            pickle.loads(text)
        except Exception:
            continue
        if canary.exists():
            break
    sys.modules.pop("canary_module", None)
    assert canary.exists()


@pytest.mark.parametrize(
    "wrong", [{"hidden": [50_000_000]}, {"channels": [1] * 100_000}, {"class_path": "canary_module.sing"}]
)
def test_a_description_that_asks_for_more_than_its_weights(good, canary, tmp_path, wrong):
    checkpoint = read_checkpoint(good)
    checkpoint["hyper_parameters"] |= wrong
    write_checkpoint(checkpoint, tmp_path / "x.ckpt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not loads_or_refuses(tmp_path / "x.ckpt", str(wrong))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 50
    assert not canary.exists()


def plain_trainers(number: int, good: Path, file: Path) -> str:
    """Writes what looks like the `number`-th file of a plain Trainer, which has no checksum, and is none."""
    rng = random.Random(number)
    data = bytearray(good.read_bytes()[: -COMMENT - 2] + b"\0\0")
    if number % 2:
        torch.save(with_wrong_entry(read_checkpoint(good), rng)[0], file)
        return "a wrong entry"
    for _ in range(rng.choice([1, 1, 5, 100])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return "bits flipped"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mutated_checkpoints_of_a_plain_trainer(good, tmp_path):
    loaded = 0
    for number in range(N):
        told = plain_trainers(number, good, tmp_path / "x.ckpt")
        loaded += loads_or_refuses(tmp_path / "x.ckpt", f"{number}: {told}")
    assert 0 < loaded < N


@pytest.mark.slow
def test_wrong_entries_when_a_run_is_resumed(cli, canary, tmp_path, tiny_mnist):
    """A resume reads more than the weights: positions, optimizer, scheduler, metrics, callbacks."""
    words = ("--data.root", tiny_mnist, "--trainer.max_epochs", 1, "--run", "a")
    assert cli("fit", *NET, *words).status == 0
    good = tmp_path / "checkpoints" / "a"
    checkpoint = read_checkpoint(good / "last.ckpt")
    file = tmp_path / "stranger" / "x.ckpt"
    file.parent.mkdir()
    (file.parent / "metrics.csv").write_bytes((good / "metrics.csv").read_bytes())
    went_on = 0
    for number in range(max(10, N // 10)):
        changed, told = with_wrong_entry(checkpoint, random.Random(number))
        write_checkpoint(changed, file)
        words = ("--ckpt_path", file, "--run", f"r{number}", "--data.root", tiny_mnist, "--trainer.max_epochs", 2)
        result = cli("fit", *words, "--trainer.max_steps", 30)
        assert result.status in (0, 1, 2), told
        assert "Traceback" not in result.err, told
        if result.status:
            said = [line for line in result.err.splitlines() if line.startswith("mnist_lightning:")]
            assert len(said) == 1, f"{told}: {result.err}"
        went_on += result.status == 0
        assert not canary.exists(), told
    assert 0 < went_on < max(10, N // 10) / 2, went_on
