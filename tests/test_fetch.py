"""Fetchers: every track once, with the right bytes or a reason; little is downloaded, and nothing is left behind."""

import contextlib
import hashlib
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from faulty_server import Site, cut, reset, serving, status, web_page
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest.archives import NumberedTars, OneZip
from melodjinn_jax.ingest.fetch import WRONG_CHECKSUM, Fetcher, LocalFolder
from melodjinn_jax.ingest.links import Links
from melodjinn_jax.ingest.track import Track
from melodjinn_jax.ingest.transport import Retry, UnreachableError

HASTY = Retry(attempts=4, first_wait=0, longest_wait=0)
SIZE = 60_000


@pytest.fixture
def site():
    with serving() as site:
        yield site


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "downloads"


def sound(number: int, size: int = SIZE) -> bytes:
    return np.random.default_rng(number).bytes(size)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def track(number: int, **fields) -> Track:
    location = f"{number % 100:02d}/{number}.mp3"
    known = {"location": location, "sha256": sha256(sound(number)), "artist": None, "licence": "by"}
    return Track(id=f"track_{number}", **(known | fields))


def bring(fetcher: Fetcher, tracks: list[Track], folder: Path, most: int = 1) -> dict[str, bytes | str | None]:
    """What a fetcher gives: bytes or a reason by id. Each comes once; its file is gone when the next comes."""
    found: dict[str, bytes | str | None] = {}
    last = None
    for fetched in fetcher.fetch(tracks):
        assert last is None or not last.exists()
        assert fetched.track.id not in found
        assert (fetched.path is None) != (fetched.reason is None)
        assert "\n" not in (fetched.reason or "")
        last = fetched.path
        found[fetched.track.id] = fetched.path.read_bytes() if fetched.path else fetched.reason
        if folder.exists():
            assert len([file for file in folder.iterdir() if file.suffix in (".mp3", ".wav")]) <= most
    assert last is None or not last.exists()
    assert found.keys() == {one.id for one in tracks}
    return found


def tar_of(members: dict[str, bytes]) -> bytes:
    """As the archives of MTG-Jamendo are: a folder, then its files; and, as they are not, a link and a bad name."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(_info("50", kind=tarfile.DIRTYPE))
        tar.addfile(_info("50/150.mp3", kind=tarfile.SYMTYPE, linkname="/etc/passwd"))
        tar.addfile(_info("../../50/250.mp3", 3), io.BytesIO(b"bad"))
        for name, content in members.items():
            tar.addfile(_info(name, len(content)), io.BytesIO(content))
    return stream.getvalue()


def _info(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, linkname
    return info


def tars(site: Site, folder: Path) -> NumberedTars:
    return NumberedTars(site.address + "/audio-{number}.tar", folder, HASTY)


def fill_tar(site: Site, members: int = 40) -> None:
    numbers = [number * 100 + 50 for number in range(3, members + 3)]
    site.files["/audio-50.tar"] = tar_of({f"50/{number}.mp3": sound(number) for number in numbers})


def test_tars_give_the_wanted_members_and_little_else_is_moved(site, folder):
    fill_tar(site)
    site.files["/audio-07.tar"] = tar_of({"./07/7.mp3": sound(7)})
    wanted = [track(4150), track(350), track(7), track(107), track(150, sha256=None), track(9)]
    found = bring(tars(site, folder), wanted, folder)
    for number in (4150, 350, 7):
        assert found[f"track_{number}"] == sound(number)
    assert found["track_107"] == f"not in {site.address}/audio-07.tar"
    assert found["track_150"] == f"not in {site.address}/audio-50.tar"
    assert "answers 404" in str(found["track_9"])
    assert site.sent < len(site.files["/audio-50.tar"]) / 2
    assert not folder.exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_tars_survive_lost_connections(site, folder, ranges):
    fill_tar(site, 20)
    site.ranges = ranges
    half = len(site.files["/audio-50.tar"]) // 2
    site.faults["/audio-50.tar"] = [reset, status(503)] + ([cut(100)] if ranges else [cut(half), cut(half)])
    wanted = [track(450), track(1350), track(2250)]
    assert bring(tars(site, folder), wanted, folder) == {one.id: sound(int(one.id[6:])) for one in wanted}
    assert not folder.exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_tars_refuse_what_is_damaged_and_go_on(site, folder, ranges):
    fill_tar(site, 5)
    site.ranges = ranges
    wanted = [track(350), track(450, sha256="0" * 64), track(550), track(650, sha256=None)]
    found = bring(tars(site, folder), wanted, folder)
    assert found["track_450"] == WRONG_CHECKSUM
    for number in (350, 550, 650):
        assert found[f"track_{number}"] == sound(number)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_tar_that_is_cut_or_none_is_a_reason(site, folder, ranges):
    fill_tar(site, 5)
    site.ranges = ranges
    site.files["/audio-50.tar"] = site.files["/audio-50.tar"][: 2 * SIZE]
    found = bring(tars(site, folder), [track(350), track(450), track(550)], folder)
    assert found["track_350"] == sound(350)
    assert "damaged tar" in str(found["track_450"])
    assert "50.tar" in str(found["track_550"])
    site.files["/audio-50.tar"] = b"no tar at all" * 1000
    assert "damaged tar" in str(bring(tars(site, folder), [track(350)], folder)["track_350"])
    site.faults["/audio-50.tar"] = [web_page] * 9
    assert "web page" in str(bring(tars(site, folder), [track(350)], folder)["track_350"])


def test_no_network_stops_every_fetcher(folder):
    with serving() as gone:
        address = gone.address
    fetchers = [
        NumberedTars(address + "/{number}.tar", folder, HASTY),
        OneZip(f"{address}/a.zip", folder, retry=HASTY),
        OneZip(f"{address}/a.zip", folder, "0" * 64, retry=HASTY),
        Links(lambda track: f"{address}/{track.id}", folder, retry=HASTY),
    ]
    for fetcher in fetchers:
        with pytest.raises(UnreachableError, match=r"nothing comes from 127\.0\.0\.1"):
            list(fetcher.fetch([track(1), track(2)]))


def test_a_consumer_that_stops_leaves_no_files(site, folder):
    fill_tar(site)
    iterator = tars(site, folder).fetch([track(350), track(450)])
    path = next(iterator).path
    assert path is not None
    assert path.exists()
    iterator.close()
    assert not folder.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_no_space_while_extracting_is_one_sentence(site, folder):
    fill_tar(site)
    folder.mkdir()
    (folder / "track_350.mp3").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"no space left for .*track_350\.mp3: make room"):
        list(tars(site, folder).fetch([track(350)]))


DAMAGE = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4)


def damaged(content: bytes, damage: list[tuple[float, int]]) -> bytes:
    """Some bytes are other ones; places below one half are within the first two kilobytes, where headers are."""
    changed = bytearray(content)
    for place, change in damage:
        changed[int(2 * place * 2048) if place < 0.5 else int((2 * place - 1) * len(content))] ^= change
    return bytes(changed)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGE, ranges=st.booleans())
def test_no_damage_to_a_tar_passes_unnoticed(site, tmp_path, damage, ranges):
    site.ranges = ranges
    site.files["/audio-50.tar"] = damaged(
        tar_of({f"50/{n}50.mp3": sound(n * 100 + 50, 3000) for n in (3, 4, 5)}), damage
    )
    wanted = [track(n, sha256=sha256(sound(n, 3000))) for n in (350, 450, 550)]
    for one in wanted:
        found = bring(tars(site, tmp_path / "downloads"), [one], tmp_path / "downloads")[one.id]
        assert isinstance(found, str) or found == sound(int(one.id[6:]), 3000)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGE, at_end=st.booleans())
def test_no_damage_to_a_zip_passes_unnoticed(site, tmp_path, damage, at_end):
    content = zip_of({f"2018/{n}.wav": sound(n, 3000) for n in (1, 2, 3)})
    turned = damaged(content[::-1], damage)[::-1] if at_end else damaged(content, damage)
    folder = tmp_path / os.urandom(8).hex()
    site.files["/m.zip"] = turned
    with contextlib.suppress(UserError):
        found = bring(
            OneZip(f"{site.address}/m.zip", folder, retry=HASTY), [recording(2018, n) for n in (1, 2, 3)], folder
        )
        for number in (1, 2, 3):
            assert isinstance(found[f"track_{number}"], str) or found[f"track_{number}"] == sound(number, 3000)


RECORDINGS = [(2018, 1), (2018, 2), (2004, 3)]


def zip_of(content: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("maestro-v3.0.0/", b"")
        archive.writestr("maestro-v3.0.0/LICENSE", b"CC")
        for name, sound in content.items():
            archive.writestr(f"maestro-v3.0.0/{name}", sound)
    return stream.getvalue()


def recording(year: int, number: int, **fields) -> Track:
    return track(number, **({"location": f"{year}/{number}.wav", "sha256": None} | fields))


@pytest.fixture
def maestro(site) -> Site:
    content = {f"{year}/{number}.wav": sound(number) for year, number in RECORDINGS}
    site.files["/m.zip"] = zip_of(content | {"2004/4.wav": sound(4, 2_000_000)})
    return site


def test_a_zip_gives_the_wanted_members(maestro, folder):
    wanted = [recording(*one) for one in RECORDINGS] + [recording(2004, 9)]
    found = bring(OneZip(f"{maestro.address}/m.zip", folder, retry=HASTY), wanted, folder)
    assert {found[f"track_{number}"] for _, number in RECORDINGS} == {sound(number) for _, number in RECORDINGS}
    assert found["track_9"] == f"not in {maestro.address}/m.zip"
    assert maestro.sent < 500_000
    assert [file.name for file in folder.iterdir()] == ["archive.json"]


@pytest.mark.parametrize("known", [True, False])
def test_a_zip_is_downloaded_whole_and_kept_where_it_must(maestro, folder, known):
    content = maestro.files["/m.zip"]
    maestro.ranges = known
    maestro.faults["/m.zip"] = [cut(1000)] if known else [reset, cut(1000)]
    zipped = OneZip(f"{maestro.address}/m.zip", folder, sha256(content) if known else None, HASTY)
    wanted = [recording(*one) for one in RECORDINGS]
    assert set(bring(zipped, wanted, folder).values()) == {sound(number) for _, number in RECORDINGS}
    assert (folder / "archive.zip").read_bytes() == content
    asked = len(maestro.requests)
    bring(zipped, wanted, folder)
    assert len(maestro.requests) - asked == (0 if known else 1)


def test_another_zip_than_before_is_refused(maestro, folder):
    bring(OneZip(f"{maestro.address}/m.zip", folder, retry=HASTY), [recording(2018, 1)], folder)
    maestro.etag = '"two"'
    with pytest.raises(UserError, match=r"m\.zip is another archive than before: remove .*archive\.json to accept it"):
        list(OneZip(f"{maestro.address}/m.zip", folder, retry=HASTY).fetch([recording(2018, 1)]))
    (folder / "archive.json").unlink()
    bring(OneZip(f"{maestro.address}/m.zip", folder, retry=HASTY), [recording(2018, 1)], folder)
    with pytest.raises(UserError, match="SHA-256"):
        list(OneZip(f"{maestro.address}/m.zip", folder, "0" * 64, HASTY).fetch([recording(2018, 1)]))


def test_damage_in_a_zip(maestro, folder):
    content = bytearray(maestro.files["/m.zip"])
    start = content.index(b"2018/2.wav") + SIZE // 2
    content[start] ^= 1
    maestro.files["/m.zip"] = bytes(content)
    wanted = [recording(2018, 1), recording(2018, 2), recording(2004, 3, sha256="0" * 64)]
    found = bring(OneZip(f"{maestro.address}/m.zip", folder, retry=HASTY), wanted, folder)
    assert found["track_1"] == sound(1)
    assert "damaged in the archive" in str(found["track_2"])
    assert found["track_3"] == WRONG_CHECKSUM
    maestro.files["/m.zip"] = b"no zip" * 1000
    (folder / "archive.json").unlink()
    with pytest.raises(UserError, match=r"m\.zip is not a zip archive"):
        list(OneZip(f"{maestro.address}/m.zip", folder, retry=HASTY).fetch(wanted))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '"text"'])
def test_a_record_that_is_none_is_written_anew(maestro, folder, content):
    folder.mkdir()
    (folder / "archive.json").write_text(content)
    found = bring(OneZip(f"{maestro.address}/m.zip", folder, retry=HASTY), [recording(2018, 1)], folder)
    assert found["track_1"] == sound(1)
    assert json.loads((folder / "archive.json").read_text())["url"] == f"{maestro.address}/m.zip"


def test_links_come_in_order_a_few_at_a_time(site, folder):
    numbers = list(range(1, 13))
    site.files |= {f"/{number}": sound(number) for number in numbers}
    site.faults["/3"] = [cut(10_000), reset]
    site.faults["/5"] = [web_page] * 9
    site.faults["/8"] = [status(429, Retry_After="0")]
    site.files["/6"], site.files["/7"] = b"moved", sound(99)
    del site.files["/4"]
    links = Links(lambda one: f"{site.address}/{one.id[6:]}" if one.id != "track_9" else "", folder, retry=HASTY)
    wanted = [track(number, sha256=sha256(sound(7)) if number == 7 else None) for number in numbers]
    found = bring(links, wanted, folder, most=4)
    assert list(found) == [one.id for one in wanted]
    faults = {4: "answers 404", 5: "web page", 6: "only 5 bytes", 7: "SHA-256", 9: "no address"}
    for number in numbers:
        if number in faults:
            assert faults[number] in str(found[f"track_{number}"])
        else:
            assert found[f"track_{number}"] == sound(number)
    assert not folder.exists()


def test_a_link_that_breaks_off_is_resumed_by_the_next_run(site, folder):
    site.files["/1"] = sound(1)
    site.faults["/1"] = [cut(20_000), *[reset] * 3]
    links = Links(lambda one: f"{site.address}/1", folder, retry=HASTY)
    assert "connection lost" in str(bring(links, [track(1)], folder)["track_1"])
    assert bring(links, [track(1)], folder)["track_1"] == sound(1)
    assert site.asked("/1")[-1] == "bytes=20000-"
    assert not folder.exists()


def test_a_local_folder_is_only_read(tmp_path):
    folder = tmp_path / "music"
    (folder / "50").mkdir(parents=True)
    (folder / "50/50.mp3").write_bytes(sound(50))
    (folder / "50/150.mp3").mkdir()
    found = [
        (fetched.path, fetched.reason) for fetched in LocalFolder(folder).fetch([track(50), track(150), track(250)])
    ]
    missing = (None, "no such file in the folder")
    assert found == [(folder / "50/50.mp3", None), missing, missing]
    assert (folder / "50/50.mp3").exists()
    with pytest.raises(UserError, match=r"--input .*nowhere is not a folder"):
        LocalFolder(tmp_path / "nowhere")
