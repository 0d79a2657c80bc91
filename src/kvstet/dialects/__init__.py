"""The APIs of hosted models, read and written: requests, replies and streams, with a neutral form between them."""
