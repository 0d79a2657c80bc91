"""A small coding agent that lives on the context layer."""
