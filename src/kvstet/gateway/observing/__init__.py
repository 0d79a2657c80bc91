"""Requests that are over: read from their copies, compared, billed and told."""
