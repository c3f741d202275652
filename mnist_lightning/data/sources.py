"""Where digits come from: files in any form, recognised by their content.

Whatever is wrong with a file ends in one UserError.
"""

from pathlib import Path

import torch

from mnist_lightning.data.digits import Digits, reading
from mnist_lightning.errors import UserError
from mnist_lightning.files import whole_file

# Looking each value up is faster than int(), and strict: int() also takes "1_0", "+1" and Arabic digits.
_TEXT = [b"%d" % value for value in range(256)]
_BYTE = {text: value for value, text in enumerate(_TEXT)}
_LONGEST_LINE = 8192  # 785 values take 3140 bytes
_FORMAT = "a line takes 784 pixels and the label, parted by tabs"


def read_text(path: Path) -> Digits:
    """Digits from lines of 784 pixels and the label, as integers parted by tabs; `#` starts a comment."""
    pixels, labels = bytearray(), bytearray()
    number = 0
    with reading(path) as file:
        while line := file.readline(_LONGEST_LINE + 1):
            number += 1
            if len(line) > _LONGEST_LINE:
                raise UserError(f"{path}, line {number} is over {_LONGEST_LINE} bytes long: {_FORMAT}")
            line = line.partition(b"#")[0].strip()
            if not line:
                continue
            values = line.split(b"\t")
            if len(values) != 785:
                raise UserError(f"{path}, line {number} has {len(values)} values, expected 785: {_FORMAT}")
            try:
                row = bytes(map(_BYTE.__getitem__, values))
            except KeyError:  # blanks and leading zeros, or what is no pixel
                bare = [value.strip() for value in values]
                found = [_BYTE.get(value.lstrip(b"0") or value[-1:], -1) for value in bare]
                if -1 in found:
                    column = found.index(-1)
                    problem = f"{values[column][:20]!r}"[1:] + " is not an integer from 0 to 255"  # shows no controls
                    raise UserError(f"{path}, line {number}, value {column + 1}: {problem}: correct it") from None
                row = bytes(found)
            if row[-1] > 9:
                raise UserError(f"{path}, line {number} has label {row[-1]}, expected 0 to 9: correct it")
            pixels += row[:-1]
            labels.append(row[-1])
    if not labels:
        raise UserError(f"{path} has {number} lines and no digits: {_FORMAT}")
    images = torch.frombuffer(pixels, dtype=torch.uint8).view(-1, 28, 28)
    return Digits(images, torch.frombuffer(labels, dtype=torch.uint8))


def write_text(digits: Digits, path: Path) -> None:
    """Writes what read_text reads; the file appears whole or not at all."""
    with whole_file(path) as file:
        file.write(b"# %d digits: 28 rows of 28 pixels (0 to 255), then the label\n" % len(digits.labels))
        for image, label in zip(digits.images, digits.labels.tolist(), strict=True):
            file.write(b"\t".join([_TEXT[value] for value in (*image.flatten().tolist(), label)]) + b"\n")
