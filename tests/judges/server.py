"""A scripted server on loopback that speaks /v1/chat/completions, for the judge's real client.

A script is a function from a request to an answer, or a list of answers played in order (the last one again and
again). An answer is a function of the handler and the request that writes to the socket.
"""

import json
import re
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MARK = re.compile(r"The mark is (\w+)\.")


@dataclass(frozen=True)
class Request:
    body: dict
    raw: str
    headers: dict
    path: str
    time: float

    @property
    def system(self):
        return self.body["messages"][0]["content"]

    @property
    def user(self):
        return self.body["messages"][1]["content"]

    @property
    def reply(self):
        """What stands in the reply's fence, found as a reader that trusts the mark alone would find it."""
        mark = MARK.match(self.user)[1]
        return self.user.split(f"[{mark} reply begins]\n")[1].split(f"\n[{mark} reply ends]")[0]


def raw(data, *, status=200, kind="application/json", headers=(), length=None):
    data = data if isinstance(data, bytes) else data.encode()

    def answer(handler, request):
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in dict(headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)
        if length is not None:
            handler.close_connection = True

    return answer


def endless(part=b"x" * 65536, headers=()):
    """An answer in chunks that does not say how long it is; begins like a good one."""

    def answer(handler, request):
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Transfer-Encoding", "chunked")
        for name, value in dict(headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.close_connection = True
        for _ in range(1000):
            try:
                handler.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            except OSError:  # the client has had enough
                return
        handler.wfile.write(b"0\r\n\r\n")

    return answer


def says(text, *, finish="stop", usage=True, **message):
    def answer(handler, request):
        content = text(request) if callable(text) else text
        sent = sum(len(each["content"]) for each in request.body["messages"])
        sent += len(json.dumps(request.body.get("response_format", {}).get("json_schema", {}).get("schema", "")))
        body = {
            "id": "x", "object": "chat.completion", "created": 0, "model": request.body["model"],
            "choices": [{"index": 0, "finish_reason": finish,
                         "message": {"role": "assistant", "content": content, **message}}],
        }  # fmt: skip
        if usage:
            body["usage"] = {"prompt_tokens": sent // 4, "completion_tokens": len(content or "") // 4}
        raw(json.dumps(body))(handler, request)

    return answer


def verdicts(**values):
    return says(json.dumps(values))


def error(status, message, headers=(), **fields):
    return raw(json.dumps({"error": {"message": message, **fields}}), status=status, headers=headers)


def half(text='{"choices": [{"message": {"content": "{'):
    """Says that more comes than does, and hangs up."""
    return raw(text, length=10_000)


def hang_up(handler, request):
    handler.close_connection = True


def slow(seconds, then):
    def answer(handler, request):
        time.sleep(seconds)
        then(handler, request)

    return answer


def waiting_for(event, then):
    def answer(handler, request):
        event.wait(60)
        then(handler, request)

    return answer


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """A client that hangs up is part of the play."""


class Server:
    def __init__(self, script, port=0):
        self.script, self.requests = script, []
        self.in_flight = self.most_in_flight = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # headers and body in one packet, or each answer waits for an acknowledgement

            def log_message(self, *args):
                pass

            def do_POST(self):
                text = self.rfile.read(int(self.headers["Content-Length"])).decode()
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(json.loads(text), text, headers, self.path, time.monotonic())
                with outer._lock:
                    number = len(outer.requests)
                    outer.requests.append(request)
                    outer.in_flight += 1
                    outer.most_in_flight = max(outer.most_in_flight, outer.in_flight)
                try:
                    script = outer.script
                    answer = script(request) if callable(script) else script[min(number, len(script) - 1)]
                    answer(self, request)
                finally:
                    with outer._lock:
                        outer.in_flight -= 1

        self._http = _Http(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def port(self):
        return self._http.server_port

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def close(self):
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
