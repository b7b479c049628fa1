"""As much of Google Cloud as a submission talks to, on this machine.

Vertex AI's REST API (pipeline jobs and schedules), an OAuth token endpoint for a service account's
key, and a container registry. The storage beside it is a real server for `gs://`, fake-gcs-server.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import jwt

DIGEST = "sha256:" + "5" * 64
_TOKEN = "a-token-of-this-machine"
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
}


class LoopbackCloud:
    """Google Cloud with a project `my-project`.

    Attributes:
        jobs: What was submitted, by resource name.
        schedules: What was scheduled.
        faults: Statuses that the next requests of a kind (such as `POST pipelineJobs`) get.
        requests: Kind of every request to Vertex so far.
        stories: For every look at a job, the states of its tasks and its own.
        errors: What a failed task says, by its name.
        tags: Images of the registry, `NAME:TAG`.
        trusting: Whether credentials are accepted.
        gives_tokens: Whether a key is accepted.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.schedules: list[dict[str, Any]] = []
        self.faults: dict[str, list[int]] = {}
        self.requests: list[str] = []
        self.stories: list[tuple[Mapping[str, str], str]] = []
        self.errors: dict[str, str] = {}
        self.tags = {"my-project/ml/sdft:1", "my-project/ml/sdft:latest"}
        self.trusting = self.gives_tokens = True
        self.public_key = ""
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"cloud": self})
        )
        self.port = self._server.server_address[1]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def image(self) -> str:
        return f"127.0.0.1:{self.port}/my-project/ml/sdft"

    def __enter__(self) -> LoopbackCloud:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def write_key(self, path: Path) -> Path:
        """Writes a service account's key file, whose tokens this server gives out."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        self.public_key = (
            key.public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            .decode()
        )
        path.write_text(
            json.dumps(
                {
                    "type": "service_account",
                    "project_id": "my-project",
                    "private_key_id": "1",
                    "private_key": pem.decode(),
                    "client_email": "me@my-project.iam.gserviceaccount.com",
                    "client_id": "1",
                    "token_uri": f"{self.address}/token",
                }
            )
        )
        return path


class _Handler(BaseHTTPRequestHandler):
    cloud: LoopbackCloud

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        found = re.fullmatch(r"/v2/(.+)/manifests/(.+)", self.path)
        there = found and (found[2] == DIGEST or f"{found[1]}:{found[2]}" in self.cloud.tags)
        self.send_response(200 if there else 404)
        if there:
            self.send_header("Docker-Content-Digest", DIGEST)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/token" and not self.cloud.gives_tokens:
            self._answer({"error": "invalid_grant", "error_description": "key was deleted"}, 400)
            return
        if self.path == "/token":
            self._answer({"access_token": _TOKEN, "expires_in": 3600, "token_type": "Bearer"})
            return
        url = urlsplit(self.path)
        resource = url.path.removeprefix("/v1/")
        kind = "cancel" if resource.endswith(":cancel") else resource.rpartition("/")[2]
        if self._refused(f"POST {kind}"):
            return
        cloud = self.cloud
        if kind == "cancel":
            job = cloud.jobs.get(resource.removesuffix(":cancel"))
            if job is None:
                self._fail(404, "no such job")
                return
            job["state"] = "PIPELINE_STATE_CANCELLED"
            self._answer({})
        elif kind == "pipelineJobs":
            name = f"{resource}/{parse_qs(url.query)['pipelineJobId'][0]}"
            if name in cloud.jobs:
                self._fail(409, "it exists")
                return
            job = json.loads(body)
            missing = set(job["pipelineSpec"]["root"]["inputDefinitions"]["parameters"]) - set(
                job["runtimeConfig"]["parameterValues"]
            )
            if missing:
                self._fail(400, f"no value for {sorted(missing)}")
                return
            cloud.jobs[name] = {
                **job,
                "name": name,
                "state": "PIPELINE_STATE_PENDING",
                "createTime": "2026-01-01T00:00:00Z",
            }
            self._answer(cloud.jobs[name])
        elif kind == "schedules":
            schedule = {**json.loads(body), "name": f"{resource}/77", "state": "ACTIVE"}
            cloud.schedules.append(schedule)
            self._answer(schedule)
        else:
            self._fail(404, self.path)

    def do_GET(self) -> None:
        resource = urlsplit(self.path).path.removeprefix("/v1/")
        if self._refused("GET list" if resource.endswith("pipelineJobs") else "GET job"):
            return
        cloud = self.cloud
        if resource.endswith("pipelineJobs"):
            self._answer({"pipelineJobs": list(cloud.jobs.values())})
            return
        if resource not in cloud.jobs:
            self._fail(404, f"{resource} is not there")
            return
        job = cloud.jobs[resource]
        if cloud.stories:
            tasks, state = cloud.stories.pop(0)
            job["state"] = f"PIPELINE_STATE_{state}"
            job["jobDetail"] = {
                "taskDetails": [
                    {
                        "taskId": str(index),
                        "taskName": name,
                        "state": task_state,
                        **(
                            {
                                "outputs": {
                                    "model": {
                                        "artifacts": [{"metadata": {"machine_hours": "0.5 h"}}]
                                    }
                                }
                            }
                            if (name, task_state) == ("Trainer", "SUCCEEDED")
                            else {}
                        ),
                        **(
                            {"error": {"code": 9, "message": cloud.errors[name]}}
                            if task_state == "FAILED"
                            else {}
                        ),
                    }
                    for index, (name, task_state) in enumerate(tasks.items(), start=1)
                ]
            }
        self._answer(job)

    def _refused(self, kind: str) -> bool:
        self.cloud.requests.append(kind)
        if not self._trusted():
            self._fail(401, "Request had invalid authentication credentials.")
            return True
        faults = self.cloud.faults.get(kind)
        if faults:
            self._fail(faults.pop(0), f"{kind} is not to be")
            return True
        return False

    def _trusted(self) -> bool:
        """Whether the request has a token of ours, or one that the key has signed."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not self.cloud.trusting or token == _TOKEN:
            return self.cloud.trusting
        try:
            jwt.decode(token, certs=self.cloud.public_key)
        except ValueError:
            return False
        return True

    def _fail(self, code: int, message: str) -> None:
        self._answer({"error": {"code": code, "message": message, "status": _STATUS[code]}}, code)

    def _answer(self, tree: Mapping[str, Any], code: int = 200) -> None:
        body = json.dumps(tree).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
