"""``python -m kvstet``: the command line without its script."""

from kvstet.cli import main

main()
