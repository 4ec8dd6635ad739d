"""Changing a trained model without starting over: every operation makes one checkpoint of another.

`grow`, `update`, `merge`, `remove` take a `Bundle` and return a new one; `extract`, `compare`,
`show` and `analyse` only read. `scripts/bricks.py` is the same as a command.
"""
