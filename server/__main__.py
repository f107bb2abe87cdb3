"""Entry point of `roost` and of `python -m roost.server`."""

from .commands.main import app


def main() -> None:
    """Runs the command line."""
    app()


if __name__ == "__main__":
    main()
