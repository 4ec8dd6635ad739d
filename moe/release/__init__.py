"""Which model is served: judged against the one before it, promoted, taken back.

Judging: `suite`, `sides`, `scores`, `rules` and `canaries`, all called by `check`; written down by
`report`. Keeping: `hashing` and `registry`, with the standard library alone, which the server
reads too.
"""
