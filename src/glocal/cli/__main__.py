"""`python -m glocal.cli`."""

from glocal.cli import main

main()
