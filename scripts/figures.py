"""Alias of `python -m plots`."""

try:
    from plots.__main__ import main
    from trainer import cli
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: pip install -e . first, or use python -m plots") from None

if __name__ == "__main__":
    cli.run(main)
