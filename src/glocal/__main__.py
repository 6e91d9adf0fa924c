"""`python -m glocal`."""

from glocal.cli import main

main()
