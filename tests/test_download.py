"""Downloads against a server on its bad days: what arrives is what was there, or nothing and a reason."""

import dataclasses
import hashlib
import io
import json
import os
import zipfile

import numpy as np
import pytest
import requests
from faulty_server import Handler, Site, announce, cut, reset, serving, status, web_page, wrong
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest import download as module
from melodjinn_jax.ingest.download import Expected, download
from melodjinn_jax.ingest.remote import RemoteFile, Stream
from melodjinn_jax.ingest.transport import DownloadError, Retry, TransientError, UnreachableError, request

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
EXPECTED = Expected(sha256=SHA256)
HASTY = Retry(attempts=4, first_wait=0, longest_wait=0)


@pytest.fixture
def site():
    with serving() as site:
        site.files["/a.mp3"] = CONTENT
        yield site


@pytest.fixture
def file(tmp_path):
    return tmp_path / "folder" / "a.mp3"


def fetch(site: Site, file, expected: Expected = EXPECTED) -> str:
    return download(f"{site.address}/a.mp3", file, expected, HASTY)


def alone(file) -> bool:
    """Nothing partial lies beside the file."""
    return [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_the_file_arrives_whole_and_once(site, file):
    assert fetch(site, file) == SHA256
    assert file.read_bytes() == CONTENT
    assert alone(file)
    fetch(site, file)
    assert site.asked("/a.mp3") == [None]


def test_what_lies_there_is_verified(site, file):
    file.parent.mkdir()
    file.write_bytes(b"an older download")
    fetch(site, file)
    assert file.read_bytes() == CONTENT


def test_a_cut_connection_is_resumed_where_it_stopped(site, file):
    site.faults["/a.mp3"] = [cut(100_000), cut(50_000), reset]
    fetch(site, file)
    assert file.read_bytes() == CONTENT
    assert site.asked("/a.mp3") == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-"]
    assert site.sent == len(CONTENT)


def test_a_killed_download_is_resumed_by_the_next_run(site, file):
    site.faults["/a.mp3"] = [cut(100_000), *[reset] * 3]
    with pytest.raises(DownloadError, match="connection lost"):
        fetch(site, file)
    assert not file.exists()
    fetch(site, file)
    assert file.read_bytes() == CONTENT
    assert site.asked("/a.mp3")[-1] == "bytes=100000-"
    assert alone(file)


def test_a_part_of_another_version_is_not_used(site, file):
    site.faults["/a.mp3"] = [cut(100_000), *[reset] * 3]
    with pytest.raises(DownloadError):
        fetch(site, file)
    site.files["/a.mp3"], site.etag = CONTENT[::-1], '"two"'
    fetch(site, file, Expected(size=len(CONTENT)))
    assert file.read_bytes() == CONTENT[::-1]


def test_a_server_that_forgets_if_range_is_noticed(site, file):
    site.faults["/a.mp3"] = [cut(100_000)]

    def other_version(handler: Handler, content: bytes) -> None:
        del handler.headers["If-Range"]
        site.files["/a.mp3"], site.etag = CONTENT[::-1], '"two"'
        handler.file(CONTENT[::-1])

    site.faults["/a.mp3"].append(other_version)
    fetch(site, file, Expected())
    assert file.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("state", [b"", b"{", b"[]", b'{"url": 1}', b'{"url": "x", "version": null, "size": 3}'])
def test_a_part_of_unknown_origin_is_not_used(site, file, state):
    file.parent.mkdir()
    file.with_name("a.mp3.part").write_bytes(b"\0" * 1000)
    file.with_name("a.mp3.part.json").write_bytes(state)
    fetch(site, file, Expected())
    assert file.read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_dropped(site, file):
    file.parent.mkdir()
    file.with_name("a.mp3.part").write_bytes(CONTENT + b"more")
    known = {"url": f"{site.address}/a.mp3", "version": '"one"', "size": len(CONTENT)}
    file.with_name("a.mp3.part.json").write_text(json.dumps(known))
    fetch(site, file)
    assert file.read_bytes() == CONTENT


def test_a_part_that_is_whole_only_needs_its_place(site, file):
    file.parent.mkdir()
    file.with_name("a.mp3.part").write_bytes(CONTENT)
    known = {"url": f"{site.address}/a.mp3", "version": '"one"', "size": len(CONTENT)}
    file.with_name("a.mp3.part.json").write_text(json.dumps(known))
    fetch(site, file)
    assert site.requests == []
    assert alone(file)


def test_a_server_that_goes_on_elsewhere_is_not_believed(site, file):
    def elsewhere(handler: Handler, content: bytes) -> None:
        handler.answer(206, content[:50_000], {"Content-Range": f"bytes 0-49999/{len(content)}"})

    site.faults["/a.mp3"] = [cut(100_000), elsewhere, cut(100_000), status(416)]
    download(f"{site.address}/a.mp3", file, EXPECTED, dataclasses.replace(HASTY, attempts=5))
    assert file.read_bytes() == CONTENT
    assert site.asked("/a.mp3") == [None, "bytes=100000-", None, "bytes=100000-", None]


@pytest.mark.parametrize(
    "behaviour",
    [{"ranges": False}, {"etag": None}, {"etag": 'W/"weak"'}, {"length": False}, {"length": False, "etag": None}],
)
def test_servers_that_cannot_resume(site, file, behaviour):
    vars(site).update(behaviour)
    site.faults["/a.mp3"] = [cut(100_000), reset, status(503)]
    fetch(site, file)
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_failures_that_pass_are_tried_again(site, file, code):
    site.faults["/a.mp3"] = [status(code, Retry_After="0"), status(code, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")]
    site.faults["/a.mp3"].append(status(code, Retry_After="whenever"))
    fetch(site, file)
    assert file.read_bytes() == CONTENT


def test_pauses_grow_and_follow_the_server(site, file, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr("melodjinn_jax.ingest.transport.time.sleep", pauses.append)
    site.faults["/a.mp3"] = [reset, reset, status(429, Retry_After="17"), status(503, Retry_After="60"), reset]
    download(f"{site.address}/a.mp3", file, EXPECTED)
    assert pauses == [1, 2, 17, 60, 16]


def test_a_server_that_wants_to_be_left_alone_is_left_alone(site, file):
    site.faults["/a.mp3"] = [status(503, Retry_After="9999")]
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1 asks to wait 9999 s .*run the same command again"):
        download(f"{site.address}/a.mp3", file, EXPECTED)
    site.faults["/a.mp3"] = [status(429)] * 9
    with pytest.raises(UnreachableError, match=r"nothing comes from 127\.0\.0\.1 \(the server answers 429"):
        fetch(site, file)
    assert len(site.requests) == 1 + HASTY.attempts


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_refusals_are_final(site, file, code):
    site.faults["/a.mp3"] = [status(code)]
    with pytest.raises(DownloadError, match=f"a.mp3: the server answers {code}"):
        fetch(site, file)
    assert len(site.requests) == 1
    assert not file.exists()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (web_page, "web page instead of a file"),
        (status(500), "answers 500"),
        (reset, "connection lost"),
        (wrong(b"x" * 9000), "SHA-256"),
        (cut(0), "connection lost before the end"),
        (announce(400_000), "connection lost before the end|cannot go on|elsewhere"),
        (announce(200_000), "SHA-256"),
    ],
)
def test_nothing_wrong_takes_the_place_of_the_file(site, file, fault, reason):
    site.faults["/a.mp3"] = [fault] * 9
    with pytest.raises(DownloadError, match=reason) as refusal:
        fetch(site, file)
    assert "\n" not in str(refusal.value)
    assert not file.exists()
    assert len(site.requests) <= HASTY.attempts
    site.faults["/a.mp3"] = [fault]
    fetch(site, file)
    assert file.read_bytes() == CONTENT


def test_sizes_are_held_against_what_is_expected(site, file):
    with pytest.raises(DownloadError, match="300000 bytes came instead of 7"):
        fetch(site, file, Expected(size=7))
    with pytest.raises(DownloadError, match="only 300000 bytes came"):
        fetch(site, file, Expected(min_size=400_000))
    site.files["/a.mp3"] = b""
    with pytest.raises(DownloadError, match="only 0 bytes came"):
        fetch(site, file, Expected())


def test_progress_makes_up_for_failures(site, file):
    site.files["/a.mp3"] = content = np.random.default_rng(1).bytes(5 << 20)
    site.faults["/a.mp3"] = [fault for _ in range(4) for fault in (reset, reset, cut(1 << 20))]
    fetch(site, file, Expected(size=len(content)))
    assert file.read_bytes() == content


def test_coming_as_far_again_is_no_progress(site, file):
    site.files["/a.mp3"], site.etag = bytes(5 << 20), None
    site.faults["/a.mp3"] = [cut(3 << 20)] * 99
    with pytest.raises(DownloadError, match="connection lost"):
        fetch(site, file)
    assert len(site.requests) == HASTY.attempts


def test_no_network_is_one_sentence(file):
    with serving() as gone:
        address = gone.address
    with pytest.raises(UnreachableError, match=r"nothing comes from 127\.0\.0\.1 \(no connection\): check the network"):
        download(f"{address}/a.mp3", file, EXPECTED, HASTY)
    with pytest.raises(UnreachableError, match="its name is unknown here"):
        download("http://nowhere.invalid/a.mp3", file, EXPECTED, HASTY)
    for address in ("no address", "ftp://nowhere.invalid/a", "http://"):
        with pytest.raises(DownloadError):
            download(address, file, EXPECTED, HASTY)


def test_a_connection_that_is_not_secure_and_a_proxy_are_named(site, file, monkeypatch):
    with pytest.raises(
        UnreachableError, match=r"no secure connection, .*: check certificates and the clock"
    ) as refusal:
        download(f"{site.address.replace('http:', 'https:')}/a.mp3", file, EXPECTED, HASTY)
    assert "\n" not in str(refusal.value)
    with serving() as gone:
        address = gone.address
    monkeypatch.setenv("http_proxy", address)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(UnreachableError, match="the proxy lets nothing through: check HTTPS_PROXY and NO_PROXY"):
        download("http://nowhere.invalid/a.mp3", file, EXPECTED, HASTY)


def test_no_space_is_one_sentence_and_keeps_what_came(site, file, monkeypatch):
    site.faults["/a.mp3"] = [cut(100_000), *[reset] * 3]
    with pytest.raises(DownloadError):
        fetch(site, file)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "body", full)
    with pytest.raises(UserError, match=r"no space left for .*a\.mp3: make room"):
        fetch(site, file)
    assert file.with_name("a.mp3.part").stat().st_size == 100_000


def test_a_folder_that_cannot_be_written(site, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"taken/a\.mp3 cannot be written: "):
        fetch(site, tmp_path / "taken" / "a.mp3")


FAULTS = st.one_of(
    st.integers(0, 300_000).map(cut),
    st.sampled_from([reset, web_page, status(503), status(429), status(416), wrong(b"?" * 300_000), wrong(b"?")]),
    st.integers(1, 600_000).map(announce),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(FAULTS, max_size=5), st.booleans(), st.sampled_from(['"one"', None]))
def test_any_bad_day_ends_with_the_file_or_without(site, tmp_path, faults, ranges, etag):
    file = tmp_path / os.urandom(8).hex() / "a.mp3"
    site.ranges, site.etag = ranges, etag
    site.faults["/a.mp3"] = list(faults)
    try:
        fetch(site, file)
    except (DownloadError, UnreachableError):
        assert not file.exists()
        site.faults["/a.mp3"] = []
        fetch(site, file)
    assert file.read_bytes() == CONTENT
    assert alone(file)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reads=st.lists(st.tuples(st.integers(0, 310_000), st.integers(0, 90_000)), max_size=8))
def test_a_remote_file_reads_as_a_local_one(site, reads):
    with requests.Session() as session:
        site.faults["/a.mp3"] = [reset, cut(10), status(503)]
        remote = io.BufferedReader(RemoteFile(session, f"{site.address}/a.mp3", HASTY), 512)
        local = io.BytesIO(CONTENT)
        for position, size in reads:
            assert remote.seek(position) == local.seek(position)
            assert remote.read(size) == local.read(size)
            assert remote.read(size) == local.read(size)
        assert remote.seek(-1000, io.SEEK_END) == len(CONTENT) - 1000
        assert remote.read() == CONTENT[-1000:]


def test_a_remote_file_asks_for_little_and_notices_changes(site):
    site.files["/a.mp3"] = content = np.random.default_rng(2).bytes(3 << 20)
    with requests.Session() as session:
        remote = RemoteFile(session, f"{site.address}/a.mp3", HASTY)
        for _ in range(3):
            remote.seek(1 << 20)
            assert remote.read(100) == content[1 << 20 : (1 << 20) + 100]
        assert len(site.requests) == 2
        assert site.sent == 2 << 14
        remote.seek(0)
        assert io.BufferedReader(remote).read() == content
        assert len(site.requests) < 14
        remote.seek(0)
        site.etag = '"two"'
        with pytest.raises(DownloadError, match="has changed while it was read"):
            remote.read(10)
        remote = RemoteFile(session, f"{site.address}/a.mp3", HASTY)
        site.ranges = False
        assert not RemoteFile(session, f"{site.address}/a.mp3", HASTY).sends_parts
        remote.seek(2 << 20)
        with pytest.raises(DownloadError, match="no longer sends parts"):
            remote.read(10)


def test_a_zip_reads_over_the_network(site):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(50):
            archive.writestr(f"folder/{index}.wav", np.random.default_rng(index).bytes(40_000))
    site.files["/a.zip"] = stream.getvalue()
    with requests.Session() as session:
        remote = RemoteFile(session, f"{site.address}/a.zip", HASTY)
        with zipfile.ZipFile(io.BufferedReader(remote)) as archive:
            assert archive.read("folder/7.wav") == np.random.default_rng(7).bytes(40_000)
    assert site.sent < len(site.files["/a.zip"]) / 8


def test_a_stream_gives_what_is_asked_for_until_it_breaks(site):
    with requests.Session() as session:
        with request(session, f"{site.address}/a.mp3", {}) as response:
            stream = io.BufferedReader(Stream(response))
            pieces = [stream.read(size) for size in (1, 100_000, 7, 250_000, 5)]
        assert b"".join(pieces) == CONTENT
        assert [len(piece) for piece in pieces] == [1, 100_000, 7, 199_992, 0]
        site.faults["/a.mp3"] = [cut(100_000)]
        with request(session, f"{site.address}/a.mp3", {}) as response:
            stream = io.BufferedReader(Stream(response))
            with pytest.raises(TransientError, match="before the end"):
                stream.read(200_000)
