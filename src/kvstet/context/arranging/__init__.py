"""Requests of others, as they are, arranged so that caches hit."""
