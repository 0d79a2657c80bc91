"""The demo: a small model, and a recorded session of a coding agent to replay on it."""
