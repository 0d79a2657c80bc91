"""``kvstet bench``: kvstet and its peers on the same machine, model and requests, and a report of it."""
