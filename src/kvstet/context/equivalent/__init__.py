"""Fidelity ``equivalent``: what is of the moment stays as it was first sent; what has changed is told at the end."""
