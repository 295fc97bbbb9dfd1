"""qbench train --serve: the live page of a run, who may read it, and that the run does not mind."""
import base64
import hashlib
import http.server
import json
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

import page_shots
from support import Skip, expect, qbench, start
from train_tests import TINY

LONG = [*TINY, "--steps", "1000000", "--log-every", "2", "--save-every", "0", "--threads", "1"]
WITHOUT = "there is no libmicrohttpd here"


def live_page_check(env=None):
    checks = json.loads(expect(qbench("doctor", "--json", "-", env=env)).out)["checks"]
    return next(check for check in checks if check["name"] == "live-page")


def can_serve():
    return live_page_check()["state"] == "ok"


class Run:
    """A training run with a live page; ends with the block."""

    def __init__(self, out, port=0):
        self.out = out
        self.process = start("train", *LONG, "--out", out, "--serve", port)
        for line in self.process.stderr:
            found = re.search(rb"live page: http://127\.0\.0\.1:(\d+)/$", line.rstrip())
            if found:
                self.port = int(found[1])
                break
        self.drain = threading.Thread(target=self.process.stderr.read)
        self.drain.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.stdout.read()
        self.code = self.process.wait(20)
        self.drain.join()

    def get(self, path="/", method="GET", data=None, **headers):
        """(status, headers, text)"""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers,
                                         method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()

    def step(self):
        lines = self.get("/metrics.jsonl")[2].splitlines()
        return json.loads(lines[-1])["step"] if lines else 0

    def wait_for(self, step):
        end = time.monotonic() + 20
        while self.step() < step:
            assert time.monotonic() < end, f"no step {step} in 20 s"
            time.sleep(0.3)


def test_live_page_needs_its_library(own):
    (own / "empty").mkdir()
    env = {"QB_MICROHTTPD_PATH": str(own / "empty")}
    done = expect(qbench("train", *TINY, "--out", own / "r", "--serve", 0, env=env), 3)
    why = "needs libmicrohttpd: found no libmicrohttpd.so.12, expected it (Debian: libmicrohttpd12)"
    assert f"--serve: {why}" in done.err.decode() and not (own / "r").exists(), done.err
    check = live_page_check(env)
    assert check["state"] == "no" and why in check["found"], check


def test_live_page(own):
    if not can_serve():
        raise Skip(WITHOUT)
    with Run(own / "run") as run:
        run.wait_for(20)
        status, headers, text = run.get()
        assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
        assert "http:" not in text and "https:" not in text and "url(" not in text
        for figure in ("Training loss", "Gradient norm", "Learning rate", "Speed"):
            assert f"<figcaption><b>{figure}</b>" in text, figure
        assert re.search(r"step</th><td class=\"n\">[\d,]+ of 1,000,000 \(", text)
        script = re.findall(r"<script>(.*?)</script>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
        assert len(script) == 1 and f"script-src 'sha256-{digest}'" in headers[
            "Content-Security-Policy"], digest
        assert headers["Content-Security-Policy"] in text

        status, headers, lines = run.get("/metrics.jsonl")
        assert status == 200 and headers["Content-Type"].startswith("text/plain")
        assert lines.endswith("\n") and all(json.loads(line)["step"] for line in lines.splitlines())
        assert (own / "run" / "metrics.jsonl").read_text().startswith(lines)
    assert run.code == 130
    with socket.socket() as s:
        assert s.connect_ex(("127.0.0.1", run.port)), "it answers after the run"


def test_live_page_who_may_read(own):
    if not can_serve():
        raise Skip(WITHOUT)
    with Run(own / "run") as run:
        for path in ("/x", "/../config.json", "/config.json", "/metrics.jsonl/", "//", "/%2e%2e/"):
            assert run.get(path)[0] == 404, path
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            status, headers, _ = run.get(method=method, data=b"x" * 100000)
            assert status == 405 and headers["Allow"] == "GET, HEAD", method
        status, headers, text = run.get(method="HEAD")
        assert status == 200 and not text and int(headers["Content-Length"]) > 1000
        for host in ("evil.example", f"evil.example:{run.port}", "127.0.0.1.evil.example", "",
                     "127.0.0.1:80@evil.example", "0.0.0.0", "localhost."):
            assert run.get(Host=host)[0] in (400, 403), host
        for host in ("localhost", "LOCALHOST:9", "127.0.0.1", f"127.0.0.1:{run.port}"):
            assert run.get(Host=host)[0] == 200, host
        listening = [line.split()[1] for table in ("tcp", "tcp6")
                     for line in open(f"/proc/net/{table}").readlines()[1:]
                     if line.split()[3] == "0A" and line.split()[1].endswith(f":{run.port:04X}")]
        assert listening == [f"0100007F:{run.port:04X}"], listening

        other = ["train", *TINY, "--steps", 1, "--out", own / "other", "--serve", run.port]
        done = expect(qbench(*other), 2)
        assert f"--serve: port {run.port} is in use" in done.err.decode(), done
        assert not (own / "other").exists()
        for bad in ("65536", "-1", "x", ""):
            expect(qbench(*other[:-1], bad), 2)
        expect(qbench("train", "--replay", "x", "--serve", 0), 2)

        # Who asks badly, or asks and says no more, stops neither the run nor others for long.
        idle = [socket.create_connection(("127.0.0.1", run.port)) for _ in range(20)]
        for i, s in enumerate(idle):
            s.sendall([b"\0" * 5000, b"GET / HTTP/1.1\r\n", b"GET " + b"/" * 60000][i % 3])
        before = (own / "run" / "metrics.jsonl").stat().st_size
        time.sleep(0.5)
        assert (own / "run" / "metrics.jsonl").stat().st_size > before
        for s in idle:
            s.close()
        assert run.get()[0] == 200


def test_live_page_reads_itself_anew(own):
    """Its script, under its policy, in Chromium: the second answer takes the first one's place."""
    if not can_serve():
        raise Skip(WITHOUT)
    browser = page_shots.browser()
    with Run(own / "run") as run:
        run.wait_for(4)
        _, headers, text = run.get()
    seen = []

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            body = text.replace("of 1,000,000", f"of answer-{len(seen)}").encode()
            self.send_response(200)
            for name in ("Content-Type", "Content-Security-Policy"):
                self.send_header(name, headers[name])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu",
                               "--enable-logging=stderr", f"--user-data-dir={own / 'profile'}",
                               "--virtual-time-budget=8000", "--dump-dom",
                               f"http://127.0.0.1:{server.server_port}/"],
                              capture_output=True, text=True, timeout=60)
        server.shutdown()
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert not console, console
    assert "of answer-2" in done.stdout and "of answer-1" not in done.stdout, (seen, done.stdout[-900:])
