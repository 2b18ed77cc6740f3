"""Hub ids and revisions, against a hub that runs here."""

from __future__ import annotations

import hashlib
import http.server
import json
import subprocess
import sys
import threading

import pytest

from tests.waiting import LIMIT_S

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """The two routes of the Hugging Face hub that a download uses, over one directory."""

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = self.path.split("?")[0]
        files = {p.name: p.read_bytes() for p in self.server.directory.iterdir()}
        if path in ("/api/models/org/model/revision/v1", f"/api/models/org/model/revision/{SHA}"):
            listing = [{"rfilename": name} for name in files]
            return self.send(json.dumps({"id": "org/model", "sha": SHA, "siblings": listing}).encode(), body)
        if path.startswith(f"/api/models/org/model/tree/{SHA}"):
            tree = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in files.items()]
            return self.send(json.dumps(tree).encode(), body)
        name = path.rpartition("/")[2]
        if path == f"/org/model/resolve/{SHA}/{name}" and name in files:
            return self.send(files[name], body)
        self.send_response(404)
        self.send_header("X-Error-Code", "RevisionNotFound" if "/revision/" in path else "EntryNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, content, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"' + hashlib.sha1(content).hexdigest() + '"')
        self.send_header("X-Repo-Commit", SHA)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def hub(references):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.directory = references("tied").directory
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


CODE = """
import os, sys
os.environ.update(HF_ENDPOINT=sys.argv[1], HF_HOME=sys.argv[2])
from memocr_jax.core.errors import UserError
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.hf_files import resolve
try:
    directory = resolve("org/model", sys.argv[3])
    print(sorted(p.name for p in directory.iterdir()), Qwen25VLConfig.from_file(directory).text.vocab_size)
except UserError as error:
    print("error:", error)
"""


def test_a_hub_id_with_its_revision(hub, tmp_path):
    def run(revision):
        command = [sys.executable, "-c", CODE, hub, str(tmp_path), revision]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        return done.stdout.strip() or done.stderr[-2000:]

    assert run("v1") == "['config.json', 'generation_config.json', 'model.safetensors'] 320"
    wrong = run("v2")
    assert wrong.startswith("error: org/model: no such directory, and not on the hub at revision v2"), wrong
