"""The only place that touches libllama."""

import os

# libllama's threads meet hundreds of times a token. GNU OpenMP lets the first ones spin for milliseconds by default, so
# that one other busy process makes decoding a hundred times slower; after about 1,000 rounds, a few microseconds, they
# sleep instead, which costs nothing on an idle machine (kvstet bench --only decode). Read once, when it is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
