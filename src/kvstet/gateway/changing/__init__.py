"""Requests that are sent on otherwise than they came."""
