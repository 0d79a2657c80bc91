"""State on disk: files, their index, and the tier that the cache writes to behind its requests."""
