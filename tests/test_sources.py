"""The metadata of the sources in their true formats, whole and damaged: nothing crashes, and the counts add up."""

import contextlib
import csv
import io
import json
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest import rows
from melodjinn_jax.ingest.plan import OTHER_TAGS, SUPERSEDED
from melodjinn_jax.ingest.rows import clean, safe_id, seconds_of
from melodjinn_jax.ingest.sources import jamendo_maxcaps, maestro, mtg_jamendo
from melodjinn_jax.ingest.track import Plan

HEADER = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\r\n"


def mtg_row(number: int, artist: int, *tags: str) -> str:
    path = f"{number % 100:02d}/{number}.mp3"
    return "\t".join([f"track_{number:07d}", f"artist_{artist:06d}", "album_000149", path, "248.0", *tags]) + "\r\n"


MTG_ROWS = [
    mtg_row(950, 87, "genre---chillout"),
    mtg_row(1950, 87, "genre---techno", "genre---house"),
    mtg_row(1021, 5, "genre---techno", "mood/theme---dark"),
]


@pytest.fixture
def repository(tmp_path) -> Path:
    """The dataset's repository in small."""
    splits = tmp_path / "data" / "splits" / "split-0"
    splits.mkdir(parents=True)
    (tmp_path / "data" / "download").mkdir()
    (tmp_path / "data" / "autotagging_genre.tsv").write_bytes((HEADER + "".join(MTG_ROWS)).encode())
    for split, row in zip(("train", "validation", "test"), MTG_ROWS, strict=True):
        (splits / f"autotagging_genre-{split}.tsv").write_bytes((HEADER + row).encode())
    (tmp_path / "audio_licenses.txt").write_text(
        "50/1950.mp3\nMañana by Someone from Jamendo: http://www.jamendo.com/track/1950\n"
        "Available under a Creative Commons Attribution license: http://creativecommons.org/licenses/by/3.0/\n\n"
        "50/950.mp3\n\n21/1021.mp3\nAvailable under a Free Art License\n"
    )
    sums = tmp_path / "data" / "download" / "raw_30s_audio_sha256_tracks.txt"
    sums.write_text(f"{'a' * 64} 50/1950.mp3\nnot a line\n")
    (sums.parent / "raw_30s_audio-low_sha256_tracks.txt").write_text(f"{'b' * 64} 50/1950.low.mp3\n")
    return tmp_path


def read_mtg(file: Path, *tags: str, split=None, licences=None, checksums=None, quality="audio") -> Plan:
    companions = mtg_jamendo.find_companions(file, split=split, licences=licences, checksums=checksums, quality=quality)
    return mtg_jamendo.read_plan(file, tags, companions, quality)


def test_mtg_finds_what_lies_beside_it(repository):
    file = repository / "data" / "autotagging_genre.tsv"
    plan = read_mtg(file)
    chill, dark, techno = plan.tracks
    assert [t.split for t in plan.tracks] == ["train", "test", "validation"]
    assert (techno.id, techno.location, techno.artist) == ("track_0001950", "50/1950.mp3", "artist_000087")
    assert (techno.seconds, techno.sha256) == (248.0, "a" * 64)
    assert techno.licence == "http://creativecommons.org/licenses/by/3.0/"
    assert techno.provenance["tags"] == ["genre---techno", "genre---house"]
    assert techno.provenance["credit"].startswith("Mañana by Someone")
    assert techno.provenance["address"] == "https://www.jamendo.com/track/1950"
    assert (chill.licence, chill.sha256) == ("unknown", None)
    assert dark.licence == "Available under a Free Art License"
    low = next(t for t in read_mtg(file, quality="audio-low").tracks if t.id == techno.id)
    assert (low.location, low.sha256) == ("50/1950.low.mp3", "b" * 64)


def test_mtg_filters_by_any_of_the_tags(repository):
    file = repository / "data" / "autotagging_genre.tsv"
    plan = read_mtg(file, "genre---techno", "genre---chillout")
    assert len(plan.tracks) == 3
    plan = read_mtg(file, "genre---house")
    assert [t.id for t in plan.tracks] == ["track_0001950"]
    assert plan.skipped == {OTHER_TAGS: 2}
    with pytest.raises(UserError, match="perhaps you meant genre---techno"):
        read_mtg(file, "techno")


def test_mtg_alone_has_no_splits(repository, tmp_path):
    alone = tmp_path / "elsewhere" / "deep" / "tracks.tsv"
    alone.parent.mkdir(parents=True)
    alone.write_bytes((HEADER + "".join(MTG_ROWS)).encode())
    assert {(t.split, t.licence, t.sha256) for t in read_mtg(alone).tracks} == {(None, "unknown", None)}
    named = read_mtg(alone, licences=repository / "audio_licenses.txt")
    assert sum(t.licence == "unknown" for t in named.tracks) == 1
    with pytest.raises(UserError, match="--split 3: there is no"):
        read_mtg(repository / "data" / "autotagging_genre.tsv", split=3)
    with pytest.raises(UserError, match="nowhere cannot be read"):
        read_mtg(alone, licences=Path("nowhere"))


def test_mtg_counts_ragged_and_repeated_rows(tmp_path):
    file = tmp_path / "odd.tsv"
    bad = ["track_0000001\tartist_000001\r\n", "nothing\r\n", "\r\n", mtg_row(2, 1).replace("02/2.mp3", "../2.mp3")]
    repeated = [mtg_row(950, 1), mtg_row(950, 2).replace("248.0", "unknown")]
    file.write_bytes(b"\xef\xbb\xbf" + (HEADER + "".join(bad + repeated)).encode() + b"track_0000003\t\xff\n")
    plan = read_mtg(file)
    assert [(t.id, t.artist, t.seconds) for t in plan.tracks] == [("track_0000950", "artist_000002", None)]
    assert plan.skipped == {
        "row too short": 1,
        "no track id": 1,
        "no path of an audio file": 1,
        SUPERSEDED: 1,
        "row is not UTF-8 text": 1,
    }


def test_files_that_are_something_else(tmp_path):
    file = tmp_path / "metadata.csv"
    file.write_text("id,name\n1,a\n")
    with pytest.raises(UserError, match="not a TSV of MTG-Jamendo"):
        read_mtg(file)
    with pytest.raises(UserError, match="not the metadata of MAESTRO"):
        maestro.read_plan(file)
    with pytest.raises(UserError, match=r"no file named YYYY-MM-DD\.jsonl"):
        jamendo_maxcaps.read_plan(tmp_path, [])
    for read in (read_mtg, maestro.read_plan, lambda path: jamendo_maxcaps.read_plan(path, [])):
        with pytest.raises(UserError, match=r"nowhere\.csv cannot be read: No such file"):
            read(tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match=r"nowhere\.json cannot be read: No such file"):
        maestro.read_plan(tmp_path / "nowhere.json")


def jamendo_row(number: int, *genres: str, **changes) -> dict:
    row = {
        "id": str(number),
        "name": "mañana será tarde",
        "duration": 321,
        "artist_id": "87",
        "artist_name": "Someone",
        "album_id": "",
        "license_ccurl": "http://creativecommons.org/licenses/by-nc-nd/3.0/",
        "audiodownload": f"https://audio.example/download/track/{number}/mp32/",
        "shareurl": f"https://www.jamendo.com/track/{number}",
        "waveform": '{"peaks":[1,2,3]}',
        "musicinfo": {"speed": "high", "tags": {"genres": list(genres), "instruments": ["synthesizer"], "vartags": []}},
        "audiodownload_allowed": True,
    }
    return row | changes


def write_jsonl(file: Path, *rows: object) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_maxcaps_reads_the_days_in_order(tmp_path):
    write_jsonl(tmp_path / "2008-01-02.jsonl", jamendo_row(1, "techno", name="newer"), jamendo_row(2, "technopop"))
    write_jsonl(tmp_path / "2008-01-01.jsonl", jamendo_row(1, "techno", name="older"), jamendo_row(3, "house"))
    write_jsonl(tmp_path / "final_caption30sec.jsonl", {"id": "4", "caption": "not a track"})
    plan = jamendo_maxcaps.read_plan(tmp_path, ["techno"])
    assert plan.skipped == {SUPERSEDED: 1, OTHER_TAGS: 2}
    (track,) = plan.tracks
    assert (track.id, track.location, track.artist, track.seconds) == ("1", "1.mp3", "87", 321)
    assert track.licence == "http://creativecommons.org/licenses/by-nc-nd/3.0/"
    assert track.provenance == {
        "source": "jamendo_maxcaps",
        "title": "newer",
        "artist_name": "Someone",
        "album": "",
        "tags": ["techno", "synthesizer"],
        "address": "https://www.jamendo.com/track/1",
        "download": "https://audio.example/download/track/1/mp32/",
    }
    assert len(jamendo_maxcaps.read_plan(tmp_path / "2008-01-01.jsonl", []).tracks) == 2


def test_maxcaps_counts_rows_that_cannot_be_used(tmp_path):
    file = tmp_path / "2008-01-01.jsonl"
    write_jsonl(
        file,
        jamendo_row(1, audiodownload_allowed=False),
        jamendo_row(2, audiodownload_allowed=None, audiodownload=""),
        jamendo_row(3, id=None),
        ["no", "row"],
        jamendo_row(4, audiodownload_allowed=None, artist_id="", license_ccurl=None, musicinfo=None, duration="x"),
        jamendo_row(5, musicinfo={"tags": {"genres": "techno", "vartags": [None, 3, "\ud800"]}}),
        jamendo_row(6, id="../../6"),
    )
    with file.open("ab") as stream:
        stream.write(b'{"id": "7"\n' + b"[" * 100_000 + b"\n\xff\n\n")
    plan = jamendo_maxcaps.read_plan(file, [])
    assert plan.skipped == {
        "download not allowed": 2,
        "no track id": 2,
        "row is not JSON": 2,
        "row is not UTF-8 text": 1,
    }
    four, five, odd = plan.tracks
    assert (four.id, four.artist, four.licence, four.seconds) == ("4", None, "unknown", None)
    assert five.provenance["tags"] == ["3", "?"]
    assert re.fullmatch(r"[A-Za-z0-9._-]+", odd.id)
    assert odd.location == f"{odd.id}.mp3"


def test_maxcaps_holds_one_row_at_a_time(tmp_path):
    rows = (jamendo_row(number, "house", waveform="9" * 20_000) for number in range(1000))
    write_jsonl(tmp_path / "2008-01-01.jsonl", jamendo_row(-1, "techno"), *rows)
    assert (tmp_path / "2008-01-01.jsonl").stat().st_size > 20e6
    tracemalloc.start()
    try:
        jamendo_maxcaps.read_plan(tmp_path, ["techno"])
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


MAESTRO_ROWS = [
    ["Alban Berg", 'Sonata, Op. 1, “Élan” ""', "train", "2018", "2018/a.midi", "2018/a--1.wav", "698.661160312"],
    ["J. S. Bach", "Fugue", "validation", "2015", "2015/b.midi", "2015/b_AUDIO-from_mp3.wav", "99.5"],
    ["J. S. Bach", "Fugue", "test", "2004", "2004/c.midi", "2004/ç d.wav", "45"],
]
MAESTRO_COLUMNS = ["canonical_composer", "canonical_title", "split", "year"]
MAESTRO_COLUMNS += ["midi_filename", "audio_filename", "duration"]


def write_csv(file: Path, rows: list[list[str]]) -> None:
    stream = io.StringIO()
    csv.writer(stream).writerows([MAESTRO_COLUMNS, *rows])
    file.write_bytes(stream.getvalue().encode())


def test_maestro_reads_csv_and_both_kinds_of_json_alike(tmp_path):
    write_csv(tmp_path / "maestro.csv", MAESTRO_ROWS)
    records = [dict(zip(MAESTRO_COLUMNS, row, strict=True)) for row in MAESTRO_ROWS]
    (tmp_path / "v2.json").write_text(json.dumps([r | {"duration": float(r["duration"])} for r in records]))
    columns = {name: {str(i): r[name] for i, r in enumerate(records)} for name in MAESTRO_COLUMNS}
    (tmp_path / "v3.json").write_text(json.dumps(columns), encoding="utf-8")
    plan = maestro.read_plan(tmp_path / "maestro.csv")
    assert plan == maestro.read_plan(tmp_path / "v2.json") == maestro.read_plan(tmp_path / "v3.json")
    odd, mp3, berg = plan.tracks
    assert (berg.id, berg.location, berg.split, berg.artist) == ("2018_a--1", "2018/a--1.wav", "train", None)
    assert (berg.licence, berg.seconds) == (maestro.LICENCE, 698.661160312)
    assert berg.provenance["title"] == 'Sonata, Op. 1, “Élan” ""'
    assert mp3.provenance["file"] == "2015/b_AUDIO-from_mp3.wav"
    assert re.fullmatch(r"2004___d-[0-9a-f]{12}", odd.id)


def test_maestro_counts_rows_that_cannot_be_used(tmp_path):
    good, file = MAESTRO_ROWS[0], tmp_path / "maestro.csv"
    paths = ["../a.wav", "/a.wav", "a/../../b.wav", "a.mid", "a\\b.wav", ""]
    rows = [good, [*good[:2], "practice", *good[3:]], *([*good[:5], path, "1"] for path in paths), ["short"], []]
    write_csv(file, rows)
    file.write_bytes(file.read_bytes() + b'x\xff,,,,,2018/z.wav,1\r\n"' + b"q" * 200_000)
    plan = maestro.read_plan(file)
    assert [(t.id, t.split) for t in plan.tracks] == [("2018_a--1", None)]
    assert plan.skipped == {
        SUPERSEDED: 1,
        "no path of an audio file": 5,
        "no audio file named": 2,
        "row is not UTF-8 text": 1,
        "unreadable row": 1,
    }


def test_a_line_without_end_is_one_row(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_LONGEST_LINE", 100)
    file = tmp_path / "rows"
    file.write_bytes(b"a\n" + b"b" * 1000 + b"\n" + b"c" * 99 + b"\n" + b"d" * 100 + b"\r\n" + b"e" * 100)
    assert list(rows.text_lines(file)) == ["a", None, "c" * 99, None, "e" * 100]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def check_counts(plan: Plan, rows: int) -> None:
    assert len(plan.tracks) + plan.skipped.total() == rows
    for track in plan.tracks:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", track.id)
        assert track.seconds is None or track.seconds > 0
        json.dumps(track.provenance, ensure_ascii=False).encode()


@given(
    st.lists(
        st.fixed_dictionaries(
            {}, optional=dict.fromkeys(jamendo_row(1), JSON) | {"id": st.integers(0, 3) | JSON, "musicinfo": JSON}
        )
        | JSON,
        max_size=8,
    )
)
def test_maxcaps_survives_any_json(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("fuzz") / "rows.jsonl"
    write_jsonl(file, *rows)
    check_counts(jamendo_maxcaps.read_plan(file, []), len(rows))


@given(
    st.lists(
        st.lists(
            st.sampled_from([*MTG_ROWS[0].split("\t"), "\r", "track_0000950"]) | st.text(max_size=6), max_size=9
        ).map("\t".join),
        max_size=8,
    )
)
def test_mtg_survives_any_rows(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("fuzz") / "rows.tsv"
    text = HEADER + "\n".join(rows)
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    count = sum(bool(_decodes(line) is None or _decodes(line).strip()) for line in file.read_bytes().split(b"\n")[1:])
    check_counts(read_mtg(file), count)


def _decodes(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


@given(st.lists(st.lists(st.sampled_from(MAESTRO_ROWS[0]) | st.text(max_size=6), min_size=1, max_size=8), max_size=6))
def test_maestro_survives_any_rows(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("fuzz") / "rows.csv"
    stream = io.StringIO()
    csv.writer(stream).writerows([MAESTRO_COLUMNS, *rows])
    file.write_bytes(stream.getvalue().encode("utf-8", "surrogatepass"))
    check_counts(maestro.read_plan(file), len(rows))


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("fuzz")
    for prefix in (b"", HEADER.encode(), ",".join(MAESTRO_COLUMNS).encode() + b"\n"):
        for name in ("a.tsv", "a.csv", "a.json", "a.jsonl"):
            (folder / name).write_bytes(prefix + content)
            for read in (read_mtg, maestro.read_plan, lambda file: jamendo_maxcaps.read_plan(file, [])):
                with contextlib.suppress(UserError):
                    plan = read(folder / name)
                    check_counts(plan, len(plan.tracks) + plan.skipped.total())


@given(st.text(max_size=200), st.text(max_size=200))
def test_ids_are_safe_and_differ_as_the_names_do(one, other):
    one, other = clean(one), clean(other)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", safe_id(one))
    assert (safe_id(one) == safe_id(other)) == (one == other)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *[(321, 321.0), ("248.0", 248.0), (2.5, 2.5), (0, None), (-1, None), (True, None), ("nan", None)],
        *[(float("inf"), None), ([], None), (None, None), ("1e9", None), (10**400, None)],
    ],
)
def test_durations(value, seconds):
    assert seconds_of(value) == seconds
