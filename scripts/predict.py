"""Answers one text, or JSON lines: `python scripts/predict.py --ckpt PATH "I love it!"`."""

from __future__ import annotations

import argparse
import json
import sys

from moe.cli import run


def main() -> None:
    """Parses the command line and prints one JSON answer per request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="?", help="the text, or the question")
    parser.add_argument("--ckpt", required=True, help="a .ckpt, a folder, or a hub id")
    parser.add_argument("--context", help="passage of the text")
    parser.add_argument("--tasks", nargs="+", help="tasks to answer; the gate chooses without it")
    parser.add_argument("--input", metavar="FILE.jsonl", help="requests, one a line; - is stdin")
    parser.add_argument("--device", help="cpu, cuda, ...; a GPU if there is one without it")
    arguments = parser.parse_args()

    from moe.jsonlines import read_requests
    from moe.predict import MixtureOfExperts
    from moe.types import InputError

    if (arguments.text is None) == (arguments.input is None):
        raise InputError("predict.py: give either a text or --input FILE.jsonl")
    model = MixtureOfExperts.from_pretrained(arguments.ckpt, arguments.device)
    requests = (
        read_requests(arguments.input, model.tasks)
        if arguments.input
        else [{"text": arguments.text, "context": arguments.context}]
    )
    for answer in model.predict(requests, tasks=arguments.tasks):
        sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    run(main)
