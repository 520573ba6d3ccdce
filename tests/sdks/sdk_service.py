"""What the services of five SDKs answer, closely enough for their clients: acts for the scripted service of ``tests/http``.

``otherwise`` of the service is one of the ``*_api`` functions; ``script`` holds the failures that come first.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from tests.http.http_service import Act, Seen, answer


def reply(document: Any, status: int = 200, **headers: str) -> Act:
    """A JSON answer. In the names of ``headers`` an underscore is a hyphen."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return answer(status, json.dumps(document).encode(), {"content-type": "application/json", **named})


def events(*documents: Any, every: float = 0.0, named: bool = False) -> Act:
    """Server-sent events, one each ``every`` seconds. ``named``: each has the name of its ``type``, as Anthropic's have."""

    def act(connection: socket.socket, seen: Seen) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for document in documents:
            time.sleep(every)
            text = document if isinstance(document, str) else json.dumps(document)
            event = ((f"event: {document['type']}\n" if named else "") + f"data: {text}\n\n").encode()
            connection.sendall(b"%x\r\n%s\r\n" % (len(event), event))
        connection.sendall(b"0\r\n\r\n")
        return True

    return act


# ------------------------------------------------------------------------------------------------ OpenAI


def openai_chunks(*words: str) -> list[Any]:
    """The events of a streamed chat completion."""
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-test"}
    return [*({**base, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]} for word in words), "[DONE]"]


def openai_api(connection: socket.socket, seen: Seen) -> bool:
    if seen.target == "/v1/models":
        model = {"id": "gpt-test", "object": "model", "created": 1, "owned_by": "nobody"}
        return reply({"object": "list", "data": [model]})(connection, seen)
    if json.loads(seen.body).get("stream"):
        return events(*openai_chunks("hel", "lo"))(connection, seen)
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}
    completion = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-test", "choices": [choice]}
    return reply(completion)(connection, seen)


# --------------------------------------------------------------------------------------------- Anthropic

MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-test", "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1},
}


def anthropic_events(*words: str) -> list[Any]:
    """The events of a streamed message."""
    return [
        {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}} for word in words),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]


def anthropic_api(connection: socket.socket, seen: Seen) -> bool:
    if json.loads(seen.body).get("stream"):
        return events(*anthropic_events("hel", "lo"), named=True)(connection, seen)
    return reply(MESSAGE)(connection, seen)


# ------------------------------------------------------------------------------------------------ Qdrant


def qdrant_api(connection: socket.socket, seen: Seen) -> bool:
    path = seen.target.partition("?")[0]
    if seen.method == "PUT":
        result: Any = {"operation_id": 1, "status": "completed"}
    elif path.endswith("/points/query"):
        result = {"points": [{"id": 7, "version": 1, "score": 0.5, "payload": {"city": "Ulm"}}]}
    else:
        result = {"collections": [{"name": "places"}]}
    return reply({"result": result, "status": "ok", "time": 0.001})(connection, seen)


# ---------------------------------------------------------------------------------------------- Supabase


def supabase_api(connection: socket.socket, seen: Seen) -> bool:
    status = 201 if seen.method == "POST" else 200
    return reply([{"id": 1, "name": "Ulm"}], status, content_range="0-0/*")(connection, seen)


# ----------------------------------------------------------------------------------------- Elasticsearch


def elasticsearch_api(connection: socket.socket, seen: Seen) -> bool:
    if seen.target.endswith("/_search"):
        hit = {"_index": "places", "_id": "1", "_score": 1.0, "_source": {"name": "Ulm"}}
        total = {"value": 1, "relation": "eq"}
        document: Any = {"took": 1, "timed_out": False, "hits": {"total": total, "max_score": 1.0, "hits": [hit]}}
    else:
        document = {"_index": "places", "_id": "1", "_version": 1, "result": "created"}
    return reply(document, x_elastic_product="Elasticsearch")(connection, seen)
