"""`python -m roost.server` is the same as `roost`."""

from .cli.main import app


def main() -> None:
    app()


if __name__ == "__main__":
    main()
