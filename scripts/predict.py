"""Answers one text, or requests in a file.

One text: `python scripts/predict.py --ckpt PATH "I love it!"`
JSON lines to stdout: `... --input requests.jsonl`, or `--input -` for stdin
A file of any size, resumable: `... --input rows.parquet --output answers.jsonl`
"""

from __future__ import annotations

import argparse
import json

from moe.cli import run


def main() -> None:
    """Parses the command line and prints one JSON answer per request, or writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", nargs="?", help="the text, or the question")
    parser.add_argument("--ckpt", required=True, help="a .ckpt, a folder, a hub id, or an export")
    parser.add_argument("--context", help="passage of the text")
    parser.add_argument("--tasks", nargs="+", help="tasks to answer; the gate chooses without it")
    parser.add_argument("--explain", action="store_true", help="add what the gate saw")
    parser.add_argument("--input", metavar="FILE", help=".jsonl, .csv, .parquet; - is stdin")
    parser.add_argument("--backend", choices=["torch", "onnx"], default="torch")
    parser.add_argument("--device", help="cpu, cuda, ...; a GPU if there is one without it")
    parser.add_argument("--output", metavar="FILE.jsonl", help="one answer a line, in order")
    parser.add_argument("--error-file", metavar="FILE.jsonl", help="bad rows, with --output")
    parser.add_argument("--resume", action="store_true", help="go on with a stopped --output")
    parser.add_argument("--devices", type=int, default=1, help="that share an --output")
    arguments = parser.parse_args()

    from moe.types import InputError

    if (arguments.text is None) == (arguments.input is None):
        raise InputError("predict.py: give either a text or --input FILE")
    if arguments.output is None:
        if arguments.error_file or arguments.resume or arguments.devices != 1:
            raise InputError("--error-file, --resume, --devices: they go with --output FILE.jsonl")
        _print_answers(arguments)
    elif arguments.input in (None, "-"):
        raise InputError("--output: needs --input FILE, which can be read again after a stop")
    else:
        from moe.batch_prediction import job_from, predict_file

        print(f"{predict_file(job_from(arguments))} -> {arguments.output}")


def _print_answers(arguments: argparse.Namespace) -> None:
    from moe import MixtureOfExperts
    from moe.request_files import read_requests
    from moe.streams import windows

    where = arguments.ckpt, arguments.device
    model = MixtureOfExperts.from_pretrained(*where, backend=arguments.backend)
    if arguments.input:
        requests = read_requests(arguments.input, lambda value: model.parse(value, arguments.tasks))
    else:
        value = {"text": arguments.text, "context": arguments.context}
        requests = [model.parse(value, arguments.tasks)]
    for window in windows(requests):
        for answer in model.answer(window, explain=arguments.explain):
            print(json.dumps(answer, ensure_ascii=False))


if __name__ == "__main__":
    run(main)
