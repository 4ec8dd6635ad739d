"""The body of `/predict` and its answers, for `/docs` and for clients that are generated."""

from __future__ import annotations

from typing import Any

from moe.forms import FORMS

DESCRIPTION = """
One model for several language tasks. A gate reads each request and sends it to the task that fits;
name `tasks` to choose them yourself. A list of requests gets a list of answers in the same order.
"""

_TEXT = {"type": "string", "pattern": "\\S"}
_REQUEST: dict[str, Any] = {
    "title": "Request",
    "type": "object",
    "required": ["text"],
    "additionalProperties": False,
    "properties": {
        "text": {**_TEXT, "description": "the text, or the question about the context"},
        "context": {"type": ["string", "null"], "description": "the passage to find an answer in"},
        "tasks": {
            "type": ["array", "null"],
            "items": {"type": "string"},
            "minItems": 1,
            "description": "tasks to answer; null lets the gate choose",
        },
        "id": {"type": ["string", "null"], "description": "returned with the answer"},
    },
}
_ITEM = {"anyOf": [_REQUEST, {**_TEXT, "description": "a request of this text alone"}]}
_LIST = {"type": "array", "items": _ITEM, "minItems": 1}
_BODY = {
    "anyOf": [
        *_ITEM["anyOf"],
        _LIST,
        {
            "title": "Requests",
            "type": "object",
            "required": ["requests"],
            "additionalProperties": False,
            "properties": {"requests": _LIST},
        },
    ]
}
_ANSWER: dict[str, Any] = {
    "title": "Answer",
    "type": "object",
    "required": ["abstained", "routing", "answers"],
    "properties": {
        "id": {"type": "string"},
        "abstained": {"type": "boolean", "description": "whether the gate finds no task that fits"},
        "reason": {"type": "string", "description": "why it abstained"},
        "routing": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["task", "probability", "experts"],
                "properties": {
                    "task": {"type": "string"},
                    "probability": {"type": "number", "description": "of the gate, in [0, 1]"},
                    "experts": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["name", "weight"],
                            "properties": {
                                "name": {"type": "string"},
                                "weight": {"type": "number"},
                            },
                        },
                    },
                },
            },
        },
        "answers": {
            "type": "object",
            "description": "by task: a label, a span of the context, or labelled spans of the text",
            "additionalProperties": {"anyOf": [form.SCHEMA for form in FORMS.values()]},
        },
    },
}
_ERROR: dict[str, Any] = {
    "title": "Error",
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
}

_REASONS = {
    400: "no JSON, or nothing asked",
    401: "no key, or a wrong one",
    408: "the body took too long",
    413: "too many bytes, requests, characters or tokens",
    415: "not application/json",
    422: "JSON, but not a request",
    429: "the queue is full, see Retry-After",
    500: "the model failed",
    503: "shutting down",
}
_EXAMPLES = {
    "one": {"value": {"text": "I love this product!"}},
    "question": {
        "value": {
            "text": "Who built the mill?",
            "context": "The mill was built in 1790 by Ada Brook.",
        }
    },
    "several": {
        "value": [
            {"id": "1", "text": "How much money is in my account?"},
            {"id": "2", "text": "A dull film.", "tasks": ["sentiment"]},
        ]
    },
}


def _json(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema, **more}}}


ERRORS: dict[int | str, dict[str, Any]] = {401: {"description": _REASONS[401], **_json(_ERROR)}}
PREDICT: dict[str, Any] = {
    "requestBody": {"required": True, **_json(_BODY, examples=_EXAMPLES)},
    "responses": {
        "200": {
            "description": "an answer, or a list of answers",
            **_json({"anyOf": [_ANSWER, {"type": "array", "items": _ANSWER}]}),
        },
        **{str(code): {"description": why, **_json(_ERROR)} for code, why in _REASONS.items()},
    },
}
