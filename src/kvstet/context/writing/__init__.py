"""The parts of a conversation that is written so that caches hit: what was said, its tools, its length."""
