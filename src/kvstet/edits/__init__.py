"""What changed in a conversation since the cache last saw it, and what that cost."""
