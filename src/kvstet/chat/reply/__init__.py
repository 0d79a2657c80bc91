"""Reads what a model generates: reasoning, text and tool calls, in the form that its chat template shows it."""
