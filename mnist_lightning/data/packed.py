"""Files as they are or packed (gzip, bzip2, xz, in a zip archive), told by their first bytes, never by their names."""

import bz2
import gzip
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mnist_lightning.errors import UserError

_PACKINGS: dict[bytes, tuple[str, Callable[[Any], Any]]] = {
    b"\x1f\x8b": ("gzip", lambda file: gzip.GzipFile(fileobj=file)),
    b"BZh": ("bzip2", bz2.BZ2File),
    b"\xfd7zXZ\x00": ("xz", lzma.LZMAFile),
}
_ZIP = b"PK\x03\x04"
_LAYERS = 3  # a .gz in a .zip, and one more
_MEMBERS = 1000
DEFLATE_RATIO = 1032  # no deflate stream unpacks to more than this many times its size
_RATIO, _SMALL = 100, 1 << 26  # digits pack to a fifth; what is over 64 MB and packs 100 times as well is a trap


class Item(NamedTuple):
    """A file, or what lies under a name in a zip archive."""

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


def items_of(path: Path) -> list[Item]:
    """The file itself; of a zip archive, what is in it."""
    if not path.is_file():  # a pipe would be waited for
        return [Item(path)]
    try:
        with open(path, "rb") as file:
            if file.read(4) != _ZIP:
                return [Item(path)]
            with zipfile.ZipFile(path) as archive:
                inside = [info.filename for info in archive.infolist()[:_MEMBERS] if info.filename[-1:] not in "/"]
        return [Item(path, name) for name in sorted(inside) if not name.startswith(("__MACOSX", "."))]
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
        return [Item(path)]


@contextmanager
def unpacked(item: Item) -> Iterator[Unpacked]:
    """The open file, unpacked; what goes wrong while it is read becomes a UserError."""
    packing = ""
    try:
        if item.path.exists() and not item.path.is_file():  # it would be waited for, or has no end
            raise UserError(f"{item.path} is a folder or a device, not a file: put the data file there")
        with ExitStack() as stack:
            file: Any = stack.enter_context(open(item.path, "rb"))
            size = os.fstat(file.fileno()).st_size
            if item.member:
                packing = "zip"
                archive = stack.enter_context(zipfile.ZipFile(file))
                size = archive.getinfo(item.member).compress_size
                file = stack.enter_context(archive.open(item.member))
            for _ in range(_LAYERS):
                start = file.peek(6)[:6]
                found = next((one for magic, one in _PACKINGS.items() if start.startswith(magic)), None)
                if found is None:
                    break
                packing, file = found[0], stack.enter_context(found[1](file))
            yield Unpacked(file, size, packing)
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile) as exc:
        raise UserError(f"{item} is a truncated or damaged {packing or 'zip'} file ({exc}): get it anew") from exc
    except (KeyError, NotImplementedError, RuntimeError) as exc:  # an entry that is gone, another method, a password
        raise UserError(f"{item.path} is a zip archive that cannot be read ({exc}): unpack it") from exc
    except OSError as exc:
        if packing and exc.errno is None:  # bzip2's way to say it
            raise UserError(f"{item} is a truncated or damaged {packing} file ({exc}): get it anew") from exc
        raise UserError(f"{item.path} cannot be read ({exc.strerror or exc}): check path and permissions") from exc


def read_all(source: Unpacked, body: int, claim: str, start: int) -> bytearray:
    """The `body` bytes that are announced: grown by what is there, not allocated by what a header claims."""
    content = bytearray()
    while len(content) <= body and (piece := source.file.read(1 << 18)):  # at its end gzip compares the checksum
        content += piece
    if len(content) != body:
        end = "goes on after that" if len(content) > body else f"ends after {start + len(content)} bytes"
        raise UserError(f"{claim}, but {end}: get it anew")
    return content
