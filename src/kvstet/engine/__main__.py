"""``python -m kvstet.engine FD``: the engine's process (`kvstet.engine.process`)."""

from kvstet.engine.process import main

main()
