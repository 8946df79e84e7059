"""The shards of a dataset on the Hub, by its real client, against a Hub of this machine."""

import hashlib
import io
import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow
import pyarrow.parquet
import pytest
from faulty_server import Handler, Site, cut, serving, status
from test_fetch import bring, sound

from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest.track import Track
from melodjinn_jax.ingest.transport import Retry, UnreachableError

pytest.importorskip("huggingface_hub", reason="the client of the Hub is not installed")

from melodjinn_jax.ingest.hub import HubShards

REPOSITORY = "someone/music"
COMMIT = "c" * 40
HASTY = Retry(attempts=3, first_wait=0, longest_wait=0)


class HubHandler(Handler):
    """The part of the Hub's interface that its client uses here."""

    def do_GET(self) -> None:  # noqa: N802
        """The dataset, its files, or one of them."""
        path = unquote(urlsplit(self.path).path)
        self.path = path
        if path.startswith(f"/api/datasets/{REPOSITORY}/revision/"):
            return self.json(path, {"id": REPOSITORY, "sha": COMMIT})
        if path.startswith(f"/api/datasets/{REPOSITORY}/tree/{COMMIT}"):
            prefix = f"/datasets/{REPOSITORY}/resolve/{COMMIT}/"
            return self.json(
                path, [entry(name.removeprefix(prefix), content) for name, content in self.site.files.items()]
            )
        if path.startswith("/api/"):
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        return super().do_GET()

    do_HEAD = do_GET  # noqa: N815

    def json(self, path: str, content: object) -> None:
        """An answer of the interface."""
        self.site.requests.append((path, None))
        faults = self.site.faults[path]
        if faults:
            return faults.pop(0)(self, b"")
        return self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send_header(self, keyword: str, value: str) -> None:
        """Files say which commit they are of."""
        super().send_header(keyword, value)
        if keyword == "Content-Type":
            super().send_header("X-Repo-Commit", COMMIT)
            content = self.site.files.get(self.path)
            if content is not None:
                super().send_header("X-Linked-Size", str(len(content)))
                super().send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')


def entry(name: str, content: bytes) -> dict:
    path = name.removeprefix(f"/datasets/{REPOSITORY}/resolve/{COMMIT}/")
    known = {"type": "file", "oid": "0" * 40, "size": len(content), "path": path}
    pointer = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return known | {"lfs": pointer}


def shard(*numbers: int, group: int = 4) -> bytes:
    """Parquet as `datasets` writes it: one column of structs, in groups of rows."""
    rows = [{"bytes": sound(number), "path": f"{number}.mp3"} for number in numbers]
    rows.append({"bytes": None, "path": None})
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    stream = io.BytesIO()
    table = pyarrow.table({"audio": pyarrow.array(rows, kind)})
    pyarrow.parquet.write_table(table, stream, row_group_size=group)
    return stream.getvalue()


def address(index: int) -> str:
    return f"/datasets/{REPOSITORY}/resolve/{COMMIT}/data/train-{index:05d}-of-00003.parquet"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    with serving(HubHandler) as site:
        site.files[address(0)] = shard(*range(1, 11))
        site.files[address(1)] = shard(*range(11, 21))
        site.files[address(2)] = shard(*range(21, 31))
        yield site


def track(number: int) -> Track:
    return Track(str(number), f"{number}.mp3", None, "by")


def shards(site: Site, folder: Path) -> HubShards:
    return HubShards(REPOSITORY, "main", folder, endpoint=site.address, retry=HASTY)


def test_only_shards_that_hold_a_wanted_track_are_downloaded(hub, tmp_path):
    folder = tmp_path / "downloads"
    found = bring(shards(hub, folder), [track(2), track(9), track(25), track(99)], folder)
    assert {name: found[name] for name in ("2", "9", "25")} == {str(number): sound(number) for number in (2, 9, 25)}
    assert found["99"] == f"no audio of it in {REPOSITORY}"
    assert None not in hub.asked(address(1))
    assert [file.name for file in folder.iterdir()] == ["shards.jsonl"]


def test_what_a_shard_holds_is_asked_once(hub, tmp_path):
    bring(shards(hub, tmp_path), [track(2), track(25)], tmp_path)
    with (tmp_path / "shards.jsonl").open("a") as notes:
        notes.write('\n{"shard": "cut o')
    hub.requests.clear()
    bring(shards(hub, tmp_path), [track(15), track(99)], tmp_path)
    assert hub.asked(address(0)) == hub.asked(address(2)) == []
    assert hub.asked(address(1))


def test_lost_connections_and_busy_servers_are_survived(hub, tmp_path):
    hub.faults[f"/api/datasets/{REPOSITORY}/revision/main"] = [status(503), status(429)]
    hub.faults[f"/api/datasets/{REPOSITORY}/tree/{COMMIT}/data"] = [status(500)]
    hub.faults[address(0)] = [cut(1000)]
    assert bring(shards(hub, tmp_path), [track(2)], tmp_path) == {"2": sound(2)}


def test_a_damaged_shard_is_a_reason_and_the_others_go_on(hub, tmp_path):
    def damaged(handler: Handler, content: bytes) -> None:
        """The ids can be read, but a bit of the shard is another one when it comes."""
        hub.faults[address(0)].append(damaged)
        whole = handler.command == "GET" and "Range" not in handler.headers
        handler.file(content[:9000] + bytes([content[9000] ^ 1]) + content[9001:] if whole else content)

    hub.faults[address(0)] = [damaged]
    found = bring(shards(hub, tmp_path), [track(2), track(12)], tmp_path)
    assert found["12"] == sound(12)
    assert "train-00000-of-00003.parquet: its SHA-256 is not the published one" in str(found["2"])


def test_what_is_not_there_is_one_sentence(hub, tmp_path):
    with pytest.raises(UserError, match="has no dataset someone/else at revision main"):
        list(HubShards("someone/else", "main", tmp_path, endpoint=hub.address, retry=HASTY).fetch([track(1)]))
    hub.files = {address(0): b"no parquet"}
    with pytest.raises(UserError, match=r"train-00000-of-00003\.parquet is no parquet file with audio\.bytes"):
        list(shards(hub, tmp_path).fetch([track(1)]))
    hub.files = {"/datasets/someone/music/README.md": b""}
    with pytest.raises(UserError, match="has no parquet files in data/"):
        list(shards(hub, tmp_path).fetch([track(1)]))
    with serving() as gone:
        nowhere = gone.address
    with pytest.raises(UnreachableError, match=r"nothing comes from 127\.0\.0\.1"):
        list(HubShards(REPOSITORY, "main", tmp_path, endpoint=nowhere, retry=HASTY).fetch([track(1)]))
