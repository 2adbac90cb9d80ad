"""A storage that is some way off: files below a folder as S3 answers reads of them, after a latency and at a rate.

    python benchmarks/slow_storage.py FOLDER PORT SECONDS MEGABYTES

SECONDS pass before each answer, and all bodies together come at so many MB/s. At /served it says how many bytes there were so far.
"""

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Front(BaseHTTPRequestHandler):
    """GET and HEAD of the files below `root`, as S3 answers them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    root, latency, rate = Path(), 0.0, 1.0
    lock, free_at, served = threading.Lock(), 0.0, 0

    def do_HEAD(self) -> None:
        """Size alone."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """All of a file, or the range that is asked for; at /served, how many bytes there were so far."""
        if self.path == "/served":
            text = str(Front.served).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            return
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def _answer(self, *, body: bool) -> None:
        time.sleep(Front.latency)
        path = Front.root / unquote(urlsplit(self.path).path).lstrip("/")
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        first, last = 0, size - 1
        asked = self.headers.get("Range", "")
        if asked:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or last), last)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("ETag", f'"{size}"')
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if body:
            with path.open("rb") as stream:
                stream.seek(first)
                left = last + 1 - first
                while left:
                    piece = stream.read(min(left, 2**18))
                    left -= len(piece)
                    _await_line(len(piece))
                    self.wfile.write(piece)


def _await_line(num_bytes: int) -> None:
    """Until these bytes, after all before them, have gone through a line of the rate."""
    with Front.lock:
        Front.free_at = max(Front.free_at, time.monotonic()) + num_bytes / Front.rate
        Front.served += num_bytes
        until = Front.free_at
    time.sleep(max(0.0, until - time.monotonic()))


def serve(root: Path, *, port: int, latency: float, rate: float) -> None:
    """Answer until killed. `rate` in bytes a second."""
    Front.root, Front.latency, Front.rate = root, latency, rate
    server = ThreadingHTTPServer(("127.0.0.1", port), Front)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    folder, port, seconds, megabytes = sys.argv[1:]
    serve(Path(folder), port=int(port), latency=float(seconds), rate=float(megabytes) * 1e6)
