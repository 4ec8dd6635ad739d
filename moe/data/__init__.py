"""Rows of every task: where they are read from, how they are cleaned, mixed and batched."""
