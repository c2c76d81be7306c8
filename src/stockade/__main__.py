"""`python -m stockade`."""

from stockade.cli import main

main()
