"""`python -m app`: the `flywheel` command where its script is not on the path."""

from app.cli import main

main()
