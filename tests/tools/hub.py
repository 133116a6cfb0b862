"""A local server that stands for the hub."""

import base64
import json
from typing import Any

REPO = "someone/sparse"


class Hub:
    """What the server was sent, and what it answers."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.created: dict[str, Any] = {}
        self.commits: list[list[dict[str, Any]]] = []
        self.info: dict[str, Any] = {"id": REPO, "private": False, "siblings": []}
        self.refusal: int | None = None
        self.url = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        self.requests.append(f"{method} {path}")
        if self.refusal:
            return self.refusal, {"error": "no"}
        place = path.partition("?")[0].removeprefix(f"/api/models/{REPO}")
        if place == "/api/repos/create":
            self.created = json.loads(body)
            return 200, {"url": f"{self.url}/{REPO}"}
        if place.startswith("/preupload/"):
            files = json.loads(body)["files"]
            return 200, {
                "files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            }
        if place.startswith("/commit/"):
            self.commits.append([json.loads(line) for line in body.splitlines()])
            pull = {"pullRequestUrl": f"{self.url}/{REPO}/discussions/1"} if "create_pr=1" in path else {}
            return 200, {"commitUrl": f"{self.url}/{REPO}/commit/abc", "commitOid": "abc", **pull}
        if method == "GET" and place.startswith(("/revision/", "")):
            return 200, self.info
        return 200, {}  # branches, and the check of the card's metadata

    def files(self) -> dict[str, bytes]:
        """The files of the one commit."""
        (commit,) = self.commits
        added = [line["value"] for line in commit if line["key"] == "file"]
        return {value["path"]: base64.b64decode(value["content"]) for value in added}
