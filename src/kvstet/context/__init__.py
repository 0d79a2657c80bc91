"""Conversations as a client means them, said so that they begin as they did before: fidelity ``equivalent``."""
