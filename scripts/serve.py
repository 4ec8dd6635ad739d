"""Answers over HTTP: `python scripts/serve.py --ckpt PATH`, then open http://127.0.0.1:8000/.

`--onnx DIR` serves an export without importing torch.
"""

from __future__ import annotations

import argparse

from moe.server.program import begin, model_options, telemetry_options


def parser() -> argparse.ArgumentParser:
    """The command line; see `moe.server.settings` for what each value means."""
    options = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add = options.add_argument
    model_options(add)
    add("--host", default="127.0.0.1", help="address; 0.0.0.0 is every network")
    add("--port", type=int, default=8000, help="0 takes a free one")
    add("--max-batch-tokens", dest="batch_tokens", type=int, default=1024, help="of a batch")
    add("--max-queue", dest="queue_items", type=int, default=256, help="requests that wait")
    add("--max-queue-tokens", dest="queue_tokens", type=int, default=65536, help="that wait")
    add("--max-items", dest="items", type=int, default=32, help="requests in one body")
    add("--max-characters", dest="characters", type=int, default=20000, help="of one request")
    add("--max-body", dest="body", type=int, default=2**21, help="bytes")
    add("--body-seconds", type=float, default=10.0, help="for a body to arrive")
    add("--grace-seconds", type=float, default=25.0, help="for accepted requests at SIGTERM")
    add("--api-key-file", metavar="FILE", help="keys, one a line; without it everyone may ask")
    add("--log-texts", action="store_true", default=False, help="log requests and answers too")
    telemetry_options(add)
    add("--feedback", metavar="DIR", help="take corrections at POST /feedback into this folder")
    add("--feedback-per-source", type=int, default=50, help="corrections a day from one source")
    return options


def main() -> None:
    """Parses the command line and serves until SIGTERM."""
    begin("server", "serve", vars(parser().parse_args()))


if __name__ == "__main__":
    main()
