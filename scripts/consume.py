"""Answers requests from a topic of a message broker: docs/events.md.

`python scripts/consume.py --ckpt PATH --broker nats://HOST:4222`, or `kafka://HOST:9092,...`
Everything on this machine, broker included: `... --ckpt PATH --demo FOLDER`
"""

from __future__ import annotations

import argparse

from moe.server.program import begin, model_options, telemetry_options


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside the options, and the description as it stands."""


def parser() -> argparse.ArgumentParser:
    """The command line; see `moe.events.settings` for what each value means."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=_Help, argument_default=argparse.SUPPRESS
    )
    add = options.add_argument
    model_options(add)
    add("--broker", help="nats://HOST:PORT, tls://HOST:PORT or kafka://HOST:PORT,HOST:PORT")
    add("--demo", metavar="FOLDER", help="instead: a broker of its own that keeps its data there")
    add("--requests", metavar="TOPIC", help="of the requests (moe.requests)")
    add("--answers", metavar="TOPIC", help="of the answers (moe.answers)")
    add("--dead", metavar="TOPIC", help="of what cannot be answered (moe.dead)")
    add("--per-task", action="store_true", help="answers of a task go to ANSWERS.TASK")
    add("--group", help="consumers of one group share the requests (moe)")
    add("--in-flight", type=int, help="messages taken and not yet answered, at most (128)")
    add("--max-batch-tokens", dest="batch_tokens", type=int, help="of a batch (1024)")
    add("--max-characters", dest="characters", type=int, help="of one request (20000)")
    add("--max-body", dest="body", type=int, default=2**20, help="bytes of a message")
    add("--attempts", type=int, help="times that a failing model is asked (3)")
    add("--deliveries", type=int, help="times that NATS may deliver a message (10)")
    add("--ack-seconds", type=float, help="after which NATS gives up a silent consumer (30)")
    add("--duplicate-seconds", type=float, help="that NATS looks for second answers (3600)")
    add("--keep-seconds", type=float, help="that NATS keeps answers (604800)")
    add("--grace-seconds", type=float, help="for messages in flight at SIGTERM (25)")
    add("--metrics-host", metavar="HOST", help="address of /metrics (127.0.0.1)")
    add("--metrics-port", type=int, metavar="PORT", help="0, the default, takes a free one")
    add("--kafka-config", metavar="FILE", help="JSON: further settings of librdkafka")
    telemetry_options(add)
    return options


def main() -> None:
    """Parses the command line and consumes until SIGTERM."""
    begin("events", "events", vars(parser().parse_args()))


if __name__ == "__main__":
    main()
