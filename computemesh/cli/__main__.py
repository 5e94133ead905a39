"""`python -m computemesh.cli` is `mesh`."""

from computemesh.cli.main import main

if __name__ == "__main__":
    main()
