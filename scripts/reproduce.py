"""`python -m reproduction`, for those who look for it here."""

from reproduction.__main__ import main
from trainer import cli

if __name__ == "__main__":
    cli.run(main)
