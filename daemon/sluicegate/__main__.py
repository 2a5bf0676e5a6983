"""`python -m sluicegate`."""

from .cli import main

if __name__ == "__main__":  # pragma: no branch
    raise SystemExit(main())
