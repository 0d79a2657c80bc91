"""Turns a conversation into tokens, and says which of them each message became."""
