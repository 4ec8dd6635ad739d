"""Sends requests to a topic, and shows what topics hold: docs/events.md.

Send: `python scripts/publish.py --broker nats://127.0.0.1:4222 requests.jsonl`, or `-` for stdin
Show: `... --broker nats://127.0.0.1:4222 --read moe.answers`, one JSON object a line
"""

from __future__ import annotations

import argparse

from moe.cli import run
from moe.types import InputError


def main() -> None:
    """Parses the command line; prints how many were stored, or what a topic holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", metavar="FILE.jsonl", help="one request a line")
    parser.add_argument("--broker", required=True, help="nats://HOST:PORT or kafka://HOST:PORT,...")
    parser.add_argument("--topic", default="moe.requests", help="that gets them (moe.requests)")
    parser.add_argument("--read", metavar="TOPIC", help="show all that this topic holds")
    arguments = parser.parse_args()
    if (arguments.file is None) == (arguments.read is None):
        raise InputError("publish.py: give either a file of requests or --read TOPIC")
    try:
        from moe.events.client import keyed, read, send

        if arguments.read:
            for message in read(arguments.broker, arguments.read):
                print(message["body"].decode("utf-8", "replace"))
            return
        with open(0 if arguments.file == "-" else arguments.file, "rb") as file:
            number = send(arguments.broker, arguments.topic, keyed(file))
        print(f"{number} stored in {arguments.topic}")
    except OSError as error:
        what = arguments.file or arguments.broker
        raise InputError(f"{what}: {error.strerror or error}") from error
    except ImportError as error:
        raise InputError(f"publish.py: {error}: pip install -e '.[events]'") from error


if __name__ == "__main__":
    run(main)
