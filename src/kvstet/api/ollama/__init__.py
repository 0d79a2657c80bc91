"""Ollama's own dialect: its chat and generate, and what its clients ask about models."""
