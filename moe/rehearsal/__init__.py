"""The loop of `docs/operations.md` as one run: every step by the command that a user would type."""
