"""A proxy in front of hosted models that observes what their caches do, and can arrange requests so that they hit."""
