"""`python -m lmd_operator` is the command line."""

from lmd_operator.cli import main

main()
