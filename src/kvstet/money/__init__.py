"""What requests cost: by class of token, with and without caching."""
