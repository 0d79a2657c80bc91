"""Recorded sessions as JSON lines: written, read, imported from clients' own files, redacted."""
