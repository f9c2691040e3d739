"""Alias of `python -m reproduction`."""

try:
    from reproduction.__main__ import main
    from trainer import cli
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: pip install -e . first, or use python -m reproduction") from None

if __name__ == "__main__":
    cli.run(main)
