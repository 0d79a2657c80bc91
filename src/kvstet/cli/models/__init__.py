"""The models that a server is told to serve: which they are, where they come from, and which of them are loaded."""
