"""What the server refuses: one form, with the error types of text-embeddings-inference.

Two departures from it: a request that is malformed, and not only too large, is a `Validation` with
422, and a model that fails is a `Backend` with 500, since 424 reads like the client's mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ErrorType = Literal["Validation", "Empty", "Overloaded", "Unhealthy", "Backend", "Unauthorized"]
_LONGEST_REASON = 500  # characters: a reason may quote a field, and a field may be a megabyte


# Not frozen: contextlib sets the traceback of an exception that passes through it.
@dataclass(kw_only=True, eq=False)
class Refusal(Exception):
    """An answer that is an error.

    Attributes:
        status: HTTP status code.
        type: Which kind.
        reason: What is wrong and what to do, for the client.
        headers: Further headers of the response.
    """

    status: int
    type: ErrorType
    reason: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def content(self) -> dict[str, str]:
        """The body: `{"error": ..., "error_type": ...}`."""
        return {"error": self.reason[:_LONGEST_REASON], "error_type": self.type}


def too_large(reason: str) -> Refusal:
    """413: a limit of this server is passed."""
    return Refusal(status=413, type="Validation", reason=reason)


def unreadable(reason: str) -> Refusal:
    """400: the body is no JSON."""
    return Refusal(status=400, type="Validation", reason=reason)


def invalid(reason: str) -> Refusal:
    """422: JSON, but not a request of this project."""
    return Refusal(status=422, type="Validation", reason=reason)


def empty(reason: str) -> Refusal:
    """400: nothing was asked."""
    return Refusal(status=400, type="Empty", reason=reason)


def overloaded(retry_after: int) -> Refusal:
    """429: the queue is full.

    Args:
        retry_after: Seconds until it should have emptied.
    """
    return Refusal(
        status=429,
        type="Overloaded",
        reason=f"the queue is full: try again in {retry_after} s",
        headers={"Retry-After": str(retry_after)},
    )


def unhealthy(reason: str) -> Refusal:
    """503: this process takes no work, another may."""
    return Refusal(status=503, type="Unhealthy", reason=reason, headers={"Retry-After": "1"})


def failed(number: str) -> Refusal:
    """500: the model failed on this request.

    Args:
        number: The request's id, under which the log has the traceback.
    """
    return Refusal(
        status=500,
        type="Backend",
        reason=f"the model failed on this request; the log has the reason under id {number}",
    )


def unauthorized() -> Refusal:
    """401: no key, or a wrong one."""
    return Refusal(
        status=401,
        type="Unauthorized",
        reason="expected a known key in the header Authorization: Bearer KEY",
        headers={"WWW-Authenticate": "Bearer"},
    )
