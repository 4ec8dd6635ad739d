"""What Prometheus reads of a consumer, beside the metrics of its model."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from moe.server.metrics import SECONDS

OUTCOMES = ("answered", "dead", "returned")


class EventMetrics:
    """Counters of one consumer.

    Args:
        registry: That they are shown in.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.messages = Counter(
            "moe_messages",
            "messages taken, by what became of them; returned: to be taken again",
            ["outcome"],
            registry=registry,
        )
        for outcome in OUTCOMES:
            self.messages.labels(outcome)
        self.redelivered = Counter(
            "moe_messages_redelivered", "messages that were taken before", registry=registry
        )
        self.duplicates = Counter(
            "moe_duplicates", "answers that the broker had already and dropped", registry=registry
        )
        self.retries = Counter(
            "moe_publish_retries",
            "times that publishing failed and was repeated",
            registry=registry,
        )
        self.seconds = Histogram(
            "moe_message_seconds",
            "from taking a message to its acknowledgement",
            buckets=SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "moe_messages_in_flight", "taken and not yet acknowledged", registry=registry
        )
        self.lag = Gauge(
            "moe_lag_messages",
            "requests in the topic that no consumer has acknowledged",
            registry=registry,
        )
