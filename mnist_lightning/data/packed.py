"""Files as they are or packed (gzip, bzip2, xz, in zip and tar archives, also in one another), told by their first
bytes, never by their names."""

import bz2
import gzip
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mnist_lightning.errors import UserError

_PACKINGS: dict[bytes, tuple[str, Callable[[Any], Any]]] = {
    b"\x1f\x8b": ("gzip", lambda file: gzip.GzipFile(fileobj=file, mode="rb")),
    b"BZh": ("bzip2", bz2.BZ2File),
    b"\xfd7zXZ\x00": ("xz", lzma.LZMAFile),
}
_ZIP, _TAR, _TAR_AT = b"PK\x03\x04", b"ustar", 257
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError)
_STRANGE = (KeyError, NotImplementedError, RuntimeError, ValueError)
_LAYERS = 3  # a .gz in a .zip, and one more; an archive in an archive, and one more
_ARCHIVE = re.compile(r"\.(zip|npz|tar|tgz|tar\.\w+)$", re.IGNORECASE)  # worth looking into, in another
DEFLATE_RATIO = 1032  # no deflate stream unpacks to more than this many times its size
_RATIO, _SMALL = 100, 1 << 26  # digits pack to a fifth; what is over 64 MB and packs 100 times as well is a trap


class Item(NamedTuple):
    """A file, or what lies under a name in an archive; in one within that, under both names, as in folders."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}, {self.member}" if self.member else str(self.path)


class Unpacked(NamedTuple):
    """An open file, unpacked as it is read."""

    file: BinaryIO
    size: int  # bytes on the disk
    packing: str  # "", "gzip", …

    def check(self, claimed: int, claim: str) -> None:
        """Refuses what cannot be in a file of this size, or is out of all proportion to it."""
        most = DEFLATE_RATIO if claimed < _SMALL else _RATIO
        if self.packing and claimed > self.size * most:
            raise UserError(f"{claim}, more than a {self.packing} file of {self.size} bytes can hold: get it anew")


class _Entry(NamedTuple):
    """What lies in an archive under a name, not opened yet."""

    name: str
    size: int  # bytes as it lies there
    whole: int  # bytes unpacked, as announced
    packing: str
    open: Callable[[], Any]


def items_of(path: Path) -> list[Item]:
    """The file itself; of an archive, what is in it."""
    if not path.is_file():  # a pipe would be waited for
        return [Item(path)]
    try:
        with open(path, "rb") as file, ExitStack() as stack:
            *_, source = _layers(file, "", stack)
            return sorted(Item(path, name) for name, _ in _walk(source, stack)) or [Item(path)]
    except (*_DAMAGED, *_STRANGE, OSError, UserError):
        return [Item(path)]


def contents_of(path: Path, members: Container[str], most: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of what is in an archive, in its order, which costs least; each of `most` bytes at most."""
    with unpacked(Item(path)) as source, ExitStack() as stack:
        for name, entry in _walk(source, stack):
            if name in members:
                if entry.whole > most:
                    raise UserError(f"{path}, {name} announces {entry.whole:,} bytes, over {most:,}: unpack it")
                with entry.open() as file:
                    yield name, file.read()


@contextmanager
def unpacked(item: Item) -> Iterator[Unpacked]:
    """The open file, unpacked; what goes wrong while it is read becomes a UserError."""
    packing = ""
    try:
        if item.path.exists() and not item.path.is_file():  # it would be waited for, or has no end
            raise UserError(f"{item.path} is a folder or a device, not a file: put the data file there")
        with open(item.path, "rb") as file, ExitStack() as stack:
            for source in _layers(file, item.member, stack):
                packing = source.packing
            yield source
    except _DAMAGED as exc:
        raise UserError(f"{item} is a truncated or damaged {packing or 'zip'} file ({exc}): get it anew") from exc
    except _STRANGE as exc:  # an entry that is gone, another method, a password
        raise UserError(f"{item.path} is a {packing or 'zip'} archive that cannot be read ({exc}): unpack it") from exc
    except OSError as exc:
        if packing and exc.errno is None:  # bzip2's way to say it
            raise UserError(f"{item} is a truncated or damaged {packing} file ({exc}): get it anew") from exc
        raise UserError(f"{item.path} cannot be read ({exc.strerror or exc}): check path and permissions") from exc


# ---------------------------------------------------------------------- layer by layer


def _layers(file: BinaryIO, member: str, stack: ExitStack) -> Iterator[Unpacked]:
    """The file, and what is in it, each opened in the one before; the last is what is meant."""
    source = Unpacked(file, os.fstat(file.fileno()).st_size, "")
    while True:
        yield source
        for layer in _unzipped(source, stack):
            yield (source := layer)
        if not member:
            return
        entry = next((one for one in _entries(source) if f"{member}/".startswith(f"{one.name}/")), None)
        if entry is None:
            raise KeyError(f"there is no {member!r} in it")
        member = member[len(entry.name) + 1 :]
        source = _within(source, entry, stack, is_archive=bool(member))


def _unzipped(source: Unpacked, stack: ExitStack) -> Iterator[Unpacked]:
    """What is in gzip, bzip2 and xz, in one another."""
    for _ in range(_LAYERS):
        start = source.file.peek(6)[:6]  # type: ignore[attr-defined]
        found = next((one for magic, one in _PACKINGS.items() if start.startswith(magic)), None)
        if found is None:
            break
        source = Unpacked(stack.enter_context(found[1](source.file)), source.size, found[0])
        yield source


def _within(source: Unpacked, entry: _Entry, stack: ExitStack, is_archive: bool) -> Unpacked:
    """What lies in an archive, opened. It takes no more than what is around it on the disk; an archive, of which the
    end is read first, is in proportion to it."""
    inner = Unpacked(stack.enter_context(entry.open()), min(source.size, entry.size), entry.packing)
    if is_archive:
        inner.check(entry.whole, f"{entry.name} announces {entry.whole:,} bytes")
    return inner


def _walk(source: Unpacked, stack: ExitStack, deep: int = _LAYERS) -> Iterator[tuple[str, _Entry]]:
    """What is in an archive and in those within it, by its name; nothing of any other file."""
    for entry in _entries(source):
        if any(part.startswith((".", "__MACOSX")) for part in entry.name.split("/")):
            continue
        inner: list[tuple[str, _Entry]] = []
        if deep and _ARCHIVE.search(entry.name):
            with suppress(*_DAMAGED, *_STRANGE, UserError):  # it is told when it is read itself
                opened = _within(source, entry, stack, is_archive=True)
                *_, opened = opened, *_unzipped(opened, stack)
                inner = [(f"{entry.name}/{name}", one) for name, one in _walk(opened, stack, deep - 1)]
        yield from inner or [(entry.name, entry)]


def _entries(source: Unpacked) -> Iterator[_Entry]:
    """What is in an archive, in its order; nothing of any other file."""
    start = source.file.peek(_TAR_AT + len(_TAR))  # type: ignore[attr-defined]
    if start[: len(_ZIP)] == _ZIP:
        archive = zipfile.ZipFile(source.file)
        for info in archive.infolist():
            if info.filename[-1:] not in ("/", "\\") and (name := _inside(info.filename)):  # a folder, or damaged
                yield _Entry(name, info.compress_size, info.file_size, "zip", partial(archive.open, info))
    elif start[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        tar = tarfile.open(fileobj=source.file, mode="r:")  # noqa: SIM115  # closed with the file
        for member in tar:
            end = member.offset_data + member.size
            source.check(end, f"a tar archive announces {end:,} bytes")
            if member.isreg() and not member.issparse() and (name := _inside(member.name)):
                yield _Entry(name, member.size, member.size, "tar", partial(tar.extractfile, member))


def _inside(name: str) -> str:
    """The name below the archive's, whatever it says: /data/3.png, ../3.png, data\\3.png."""
    return "/".join(part for part in re.split(r"[/\\]", name) if part not in ("", ".", ".."))


def read_all(source: Unpacked, body: int, claim: str, start: int) -> bytearray:
    """The `body` bytes that are announced: grown by what is there, not allocated by what a header claims."""
    content = bytearray()
    while len(content) <= body and (piece := source.file.read(1 << 18)):  # at its end gzip compares the checksum
        content += piece
    if len(content) != body:
        end = "goes on after that" if len(content) > body else f"ends after {start + len(content)} bytes"
        raise UserError(f"{claim}, but {end}: get it anew")
    return content
