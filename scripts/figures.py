"""`python -m plots`, for those who look for it here."""

from plots.__main__ import main
from trainer import cli

if __name__ == "__main__":
    cli.run(main)
