"""A local endpoint that behaves like a chat API: answers by rule, fails on demand, and remembers what it was sent."""

import json
import re
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Endpoint:
    """Names the most frequent marked word; says that an excerpt fits where it has that word."""

    def __init__(self, failures=()):
        self.failures = list(failures)
        """What to do with the next requests instead of answering: (status, headers, body), or "hang up"."""
        self.requests, self.headers = [], []
        self.lock = threading.Lock()
        self.url = ""

    def answer(self, request):
        prompt = request["messages"][0]["content"]
        if "is described as" in prompt:
            word = json.loads(re.search(r"described as: (.*)", prompt)[1]).split()[-1]
            excerpts = re.findall(r"^\d+\. (.*)$", prompt, re.MULTILINE)
            return f"Here it is: {[int(word in text) for text in excerpts]}"
        words = Counter(re.findall(r"<<(.*?)>>", prompt))
        return f'"the word {words.most_common(1)[0][0]}"'


def _handler(endpoint):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with endpoint.lock:
                endpoint.requests.append(json.loads(body))
                endpoint.headers.append(dict(self.headers))
                failure = endpoint.failures.pop(0) if endpoint.failures else None
            if failure == "hang up":
                self.connection.close()
                return
            if failure is not None:
                status, headers, text = failure
            else:
                answer = {"choices": [{"message": {"content": endpoint.answer(json.loads(body))}}],
                          "usage": {"prompt_tokens": 10, "completion_tokens": 2}}  # fmt: skip
                status, headers, text = 200, {}, json.dumps(answer)
            with suppress(ConnectionError):  # a client that has waited long enough is gone
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

        def log_message(self, *args):
            pass

    return Handler


@contextmanager
def serving(endpoint):
    """The endpoint on a port of this machine, while inside."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(endpoint))
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
