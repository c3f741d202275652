"""`python -m mnist_lightning fit`: see `python -m mnist_lightning --help`."""

from mnist_lightning.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
