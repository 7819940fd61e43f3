"""A stand-in of the Hugging Face hub: the part of its HTTP interface that data sets need."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

LARGE = 4096
"""Bytes from which files go by LFS, as the hub asks for large ones."""


class Hub(ThreadingHTTPServer):
    """Repositories in memory; ``damage`` and ``missing`` change what is answered of a file."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits = {}  # repo -> list of {name: bytes}
        self.objects = {}  # sha256 -> bytes
        self.fetched, self.uploaded = [], []
        self.damage, self.missing = set(), set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def state(self, repo, revision="main"):
        commits = self.commits[repo]
        return commits[-1 if revision == "main" else int(revision, 16)]

    def sha(self, repo):
        return f"{len(self.commits[repo]) - 1:040x}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, content=b"", status=200, **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self):
        path, body, hub = unquote(urlparse(self.path).path), self.body(), self.server
        if path == "/api/repos/create":
            asked = json.loads(body)
            owner = asked.get("organization")
            repo = f"{owner}/{asked['name']}" if owner else asked["name"]
            if repo in hub.commits:
                return self.answer({"error": "exists", "url": f"{hub.url}/datasets/{repo}"}, 409)
            hub.commits[repo] = [{}]
            return self.answer({"url": f"{hub.url}/datasets/{repo}"})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if path.endswith("/info/lfs/objects/batch"):
            objects = []
            for item in json.loads(body)["objects"]:
                found = dict(item)
                if item["oid"] not in hub.objects:
                    found["actions"] = {"upload": {"href": f"{hub.url}/put/{item['oid']}"}}
                objects.append(found)
            return self.answer({"transfer": "basic", "objects": objects})
        if "/commit/" in path:
            repo = path.split("/api/datasets/")[1].split("/commit/")[0]
            state = dict(hub.state(repo))
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "file":
                    state[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    state[value["path"]] = hub.objects[value["oid"]]
            hub.commits[repo].append(state)
            sha = hub.sha(repo)
            url = f"{hub.url}/datasets/{repo}/commit/{sha}"
            return self.answer({"success": True, "commitOid": sha, "commitUrl": url})
        return self.answer({"error": f"no {path}"}, 404)

    def do_PUT(self):
        content, oid = self.body(), self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.objects[oid] = content
        self.server.uploaded.append(oid)
        self.answer()

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, hub = unquote(urlparse(self.path).path), self.server
        if path.startswith("/api/datasets/"):
            repo, _, revision = path.removeprefix("/api/datasets/").partition("/revision/")
            if repo not in hub.commits:
                return self.answer({"error": "none"}, 404, X_Error_Code="RepoNotFound")
            names = [{"rfilename": name} for name in hub.state(repo, revision or "main")]
            return self.answer({"id": repo, "sha": hub.sha(repo), "siblings": names})
        repo, _, rest = path.removeprefix("/datasets/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        content = hub.state(repo, revision).get(name)
        if content is None or name in hub.missing:
            return self.answer(b"", 404, X_Error_Code="EntryNotFound")
        if name in hub.damage:
            content = bytes([content[0] ^ 1]) + content[1:]
        if self.command == "GET":
            hub.fetched.append(name)
        headers = {
            "X_Repo_Commit": hub.sha(repo),
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Accept_Ranges": "bytes",
        }
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if first:
            headers["Content_Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            return self.answer(content[first:], 206, **headers)
        headers["Content_Length"] = str(len(content))
        return self.answer(content, **headers)
