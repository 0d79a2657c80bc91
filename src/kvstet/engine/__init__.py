"""Runs requests on a model: scheduling, batching, and the process they run in. Token ids only, never text."""
