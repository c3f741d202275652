"""Where digits come from: files in any form, recognised by their content.

Whatever is wrong with a file ends in one UserError.
"""

from mnist_lightning.data.digits import Digits
from mnist_lightning.data.tables import read_text, write_text

__all__ = ["Digits", "read_text", "write_text"]
