"""A hub of our own: a server that speaks what the hub's clients need, and ``python -m tests.data.hub``, a client."""

import base64
import hashlib
import http.server
import json
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import TypeAdapter

from distvae.config.schema import DataConfig
from distvae.data import corpus, sources
from distvae.system.errors import UserError


def commit_of(folder: Path) -> str:
    """The commit of a repository: a digest of its content."""
    content = [
        (str(path.relative_to(folder)), path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()
    ]
    return hashlib.sha1(repr(content).encode()).hexdigest()


class Hub(http.server.ThreadingHTTPServer):
    """Serves the folders ORG/NAME below ``root`` as repositories of datasets and models, each with one branch, main.

    Those who have a token may create repositories of models, and commit files to them. An organisation ``gated`` serves
    its repositories' descriptions, and refuses their files.
    """

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def _send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content_Type", "application/json")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, code: str, status: int = 404) -> None:
        self._send(b'{"error": "refused"}', status, X_Error_Code=code, X_Error_Message="refused")

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        words = [unquote(word) for word in urlsplit(self.path).path.strip("/").split("/")]
        api = words[0] == "api"
        words = words[1:] if api else words
        if api and words[0] in ("repos", "validate-yaml"):
            return self._create(json.loads(body)) if words[0] == "repos" else self._send(b'{"errors":[],"warnings":[]}')
        if not api and words[0] != "datasets":
            words = ["models", *words]
        repository, rest = Path(*words[1:3]), words[3:]
        folder = self.server.root / repository
        if not (len(words) >= 3 and folder.is_dir()):
            return self._refuse("RepoNotFound", 401)
        commit = commit_of(folder)
        if len(rest) > 1 and rest[1] not in ("main", commit):
            return self._refuse("RevisionNotFound")
        if not api:
            return self._file(folder / Path(*rest[2:]), commit, repository.parts[0] == "gated")
        if not rest or rest[0] == "revision":
            return self._send(json.dumps(self._description(folder, repository, commit)).encode())
        if rest[0] == "paths-info":
            wanted = json.loads(body)["paths"]
            return self._send(json.dumps([e for e in _entries(folder, folder) if e["path"] in wanted]).encode())
        if rest[0] == "tree":
            below = folder / Path(*rest[2:])
            if not below.is_dir():
                return self._refuse("EntryNotFound")
            return self._send(json.dumps(_entries(folder, below)).encode())
        if rest[0] == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(body)["files"]]  # fmt: skip
            return self._send(json.dumps({"files": files}).encode())
        if rest[0] == "commit":
            return self._commit(folder, repository, [json.loads(line) for line in body.splitlines()])
        return self._refuse("EntryNotFound")

    def _create(self, wanted: dict) -> None:
        if "Authorization" not in self.headers:
            return self._refuse("Unauthorized", 401)
        folder = self.server.root / wanted.get("organization", "me") / wanted["name"]
        existed = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        address = {"url": f"{self.server.endpoint}/{folder.relative_to(self.server.root).as_posix()}"}
        return self._send(json.dumps(address).encode(), 409 if existed else 200)

    def _commit(self, folder: Path, repository: Path, lines: list[dict]) -> None:
        for line in lines:
            if line["key"] == "file":
                (folder / line["value"]["path"]).write_bytes(base64.b64decode(line["value"]["content"]))
        address = f"{self.server.endpoint}/{repository.as_posix()}/commit/{commit_of(folder)}"
        done = {"success": True, "commitUrl": address, "commitOid": commit_of(folder), "hookOutput": ""}
        self._send(json.dumps(done).encode())

    do_GET = do_HEAD = do_POST = _handle  # noqa: N815

    def _description(self, folder: Path, repository: Path, commit: str) -> dict:
        siblings = [{"rfilename": entry["path"]} for entry in _entries(folder, folder) if entry["type"] == "file"]
        return {"id": repository.as_posix(), "sha": commit, "siblings": siblings, "private": False, "tags": [],
                "gated": repository.parts[0] == "gated", "downloads": 0, "likes": 0, "lastModified": DATE}  # fmt: skip

    def _file(self, path: Path, commit: str, gated: bool) -> None:
        if gated:
            return self._refuse("GatedRepo", 403)
        if not path.is_file():
            return self._send(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = path.read_bytes()
        etag = hashlib.sha1(content).hexdigest()
        return self._send(content, ETag=f'"{etag}"', X_Repo_Commit=commit, Content_Type="application/octet-stream")


DATE = "2024-01-01T00:00:00.000Z"


def _entries(root: Path, below: Path) -> list[dict]:
    return [
        {"type": "directory" if path.is_dir() else "file", "path": path.relative_to(root).as_posix(),
         "size": 0 if path.is_dir() else path.stat().st_size, "oid": hashlib.sha1(str(path).encode()).hexdigest()}
        for path in sorted(below.rglob("*"))
    ]  # fmt: skip


def main() -> None:
    """Prepare the corpora of the settings on standard input, one JSON object a line; print what comes of each."""
    for line in sys.stdin:
        try:
            data = sources.pinned(TypeAdapter(DataConfig).validate_json(line))
            prepared = corpus.load(corpus.prepare(data, progress=False))
        except UserError as error:
            print(json.dumps({"error": str(error)}))
            continue
        decode = prepared.vocabulary.decode
        rows = {split: [" ".join(decode(ids)) for ids in getattr(prepared, split)[:]] for split in corpus.SPLITS}
        labels = {split: found.to_dict() for split, found in prepared.labels.items()}
        print(json.dumps({"rows": rows, "labels": labels, "notes": prepared.notes, "revision": data.revision}))


if __name__ == "__main__":
    main()
