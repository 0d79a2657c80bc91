"""Anthropic's dialect: the Messages API, as Claude Code and other clients of it speak it."""
