"""Requests from a topic of a message broker, answers to another: `scripts/consume.py`.

What is promised, and to whom: docs/events.md.
"""
