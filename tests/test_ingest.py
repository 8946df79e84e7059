"""From a folder of audio to a DATASET: every track in or out for a true reason, copies together, kills forgotten."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from ingest_stubs import EnergyCodec, tune, use_energy_codec, write_collection

from data_pipelines import folder as pipeline
from melodjinn_jax.data.audio import HOP_LENGTH, SAMPLE_RATE, to_int16
from melodjinn_jax.data.dataset import Dataset, open_dataset
from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest import local, run, scan
from melodjinn_jax.ingest.decode import decode_blocks
from melodjinn_jax.ingest.fetch import Fetched, LocalFolder
from melodjinn_jax.ingest.plan import Fractions
from melodjinn_jax.ingest.run import IngestOptions, ingest
from melodjinn_jax.ingest.sources.folder import plan_folder
from melodjinn_jax.ingest.track import SPLITS, Plan
from melodjinn_jax.ingest.workplace import claimed, partial_folder

SHARED = Path(__file__).parents[2] / "shared" / "data"
PAIRS = (("test_48k.wav", "electro_1.mp3"), ("ds10_maintenance.mp3", "ds10_maintenance_320k.mp3"))
CHUNK = 75


@pytest.fixture(autouse=True)
def _energy_codec(monkeypatch):
    use_energy_codec(monkeypatch.setattr)


def make(source: Path, output: Path, **options) -> Dataset:
    plan = plan_folder(source)
    options = IngestOptions(**({"chunk_frames": CHUNK, "held_out": Fractions(0.2, 0.2)} | options))
    return ingest(plan, LocalFolder(source), output, options, progress=lambda line: None)


@pytest.fixture(scope="module")
def music(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("music")
    write_collection(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(music, tmp_path_factory) -> Dataset:
    with pytest.MonkeyPatch.context() as patch:
        use_energy_codec(patch.setattr)
        return make(music, tmp_path_factory.mktemp("made") / "dataset")


def records_of(dataset: Dataset) -> list[tuple[str, dict]]:
    return [(split, record) for split in dataset.info.records for record in dataset.source(split)]


def rejected_of(dataset: Dataset) -> dict[str, str]:
    lines = (dataset.path / run.REJECTED).read_text().splitlines()
    return {row["path"]: row["reason"] for row in map(json.loads, lines)}


def hashes(dataset: Dataset) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in dataset.info.files.items()}


def test_the_records_are_what_the_files_hold(music, dataset):
    dataset.verify()
    covered: Counter[str] = Counter()
    for _, record in records_of(dataset):
        provenance = record["provenance"]
        sound = np.concatenate(list(decode_blocks(music / provenance["path"])))
        start = provenance["start_frame"] * HOP_LENGTH
        expected = to_int16(sound * np.float32(provenance["gain"]))[start : start + CHUNK * HOP_LENGTH]
        np.testing.assert_array_equal(record["waveform"].ravel()[: len(expected)], expected)
        assert not record["waveform"].ravel()[len(expected) :].any()
        assert provenance["artist"] == provenance["path"].split("/")[0]
        assert provenance["seconds"] == pytest.approx(len(sound) / SAMPLE_RATE, abs=1e-3)
        assert record["id"] == f"{provenance['track']}/{provenance['start_frame']:07d}"
        covered[provenance["path"]] += 1
    assert sorted(covered) == sorted(track.location for track in plan_folder(music).tracks)
    assert rejected_of(dataset) == {}


def test_silence_at_the_ends_is_cut_off_and_the_places_of_records_stay_true(tmp_path):
    rng = np.random.default_rng(0)
    pause, sound = np.zeros(2 * SAMPLE_RATE), rng.uniform(-0.3, 0.3, 3 * SAMPLE_RATE)
    whole = np.concatenate([pause, sound, pause, sound, pause, pause])
    (tmp_path / "in" / "artist").mkdir(parents=True)
    soundfile.write(tmp_path / "in" / "artist" / "a.flac", whole, SAMPLE_RATE)
    dataset = make(tmp_path / "in", tmp_path / "d")
    records = [record for _, record in records_of(dataset)]
    starts = sorted(record["provenance"]["start_frame"] for record in records)
    # .25 s of silence stay before and after; the pause between stays whole.
    assert starts[0] == (2 * SAMPLE_RATE) // HOP_LENGTH - 19
    assert starts[-1] + CHUNK == 10 * SAMPLE_RATE // HOP_LENGTH + 19
    for record in records:
        start = record["provenance"]["start_frame"] * HOP_LENGTH
        np.testing.assert_array_equal(record["waveform"].ravel(), to_int16(whole)[start : start + CHUNK * HOP_LENGTH])
    summary = json.loads((dataset.path / run.SUMMARY).read_text())
    assert summary["trimmed_seconds"] == pytest.approx(6 - 2 * 19 * HOP_LENGTH / SAMPLE_RATE, abs=0.1)
    assert summary["hours"] * 3600 == pytest.approx(8 + 2 * 19 * HOP_LENGTH / SAMPLE_RATE, abs=0.2)


def test_artists_stay_in_one_split_and_no_split_is_empty(dataset):
    splits: dict[str, set[str]] = {}
    for split, record in records_of(dataset):
        splits.setdefault(record["provenance"]["artist"], set()).add(split)
    assert all(len(own) == 1 for own in splits.values())
    assert set(dataset.info.records) == set(SPLITS)


def test_the_same_again_is_opened_and_other_settings_are_refused(music, dataset, monkeypatch):
    monkeypatch.setattr(run, "_make", None)
    assert make(music, dataset.path) == dataset
    with pytest.raises(UserError, match=r"options\.chunk_frames \(75 there, 80 asked for\)"):
        make(music, dataset.path, chunk_frames=80)


def test_other_weights_are_another_dataset_wherever_the_file_lies(music, tmp_path):
    files = [tmp_path / name for name in ("a", "b", "c")]
    for file, content in zip(files, (b"one", b"one", b"other"), strict=True):
        file.write_bytes(content)
    plan = plan_folder(music)
    made_from = [
        run._fingerprint(plan, IngestOptions(codec="encodec_24khz", codec_weights=str(file))) for file in files
    ]
    assert made_from[0] == made_from[1] != made_from[2]


def test_workers_do_not_show(music, dataset, tmp_path):
    assert hashes(make(music, tmp_path / "d", workers=3)) == hashes(dataset)


def test_tfds_opens_it(dataset):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(dataset.path).as_data_source("train")
    assert len(source) == dataset.info.records["train"]
    assert json.loads(source[0]["provenance"])["source"] == "folder"


@pytest.fixture
def odd(music, tmp_path) -> Path:
    """A collection with everything in it that a collection should not have."""
    folder = Path(shutil.copytree(music, tmp_path / "odd"))
    whole = (music / "artist 0" / "0.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "page.mp3").write_text("<html>no such track</html>")
    (folder / "empty.ogg").touch()
    soundfile.write(folder / "silent.flac", np.zeros(5 * SAMPLE_RATE), SAMPLE_RATE)
    soundfile.write(folder / "short.flac", tune(90, 0.9), SAMPLE_RATE)
    soundfile.write(folder / "nan.wav", np.full(5 * SAMPLE_RATE, np.nan), SAMPLE_RATE, subtype="FLOAT")
    soundfile.write(folder / "loud.wav", 9 * tune(91, 5), SAMPLE_RATE, subtype="FLOAT")
    (folder / "copy of a file.wav").write_bytes(whole)
    sound, rate = soundfile.read(folder / "artist 1" / "0.ogg", dtype="float32")
    soundfile.write(folder / "zz other bytes.flac", soundfile.read(music / "artist 0" / "0.wav")[0], SAMPLE_RATE)
    soundfile.write(folder / "softer copy.mp3", 0.5 * sound, rate)
    (folder / "notes.txt").write_text("not music")
    (folder / ".hidden.mp3").write_text("not music")
    return folder


def test_every_track_is_in_or_out_for_a_true_reason(odd, tmp_path):
    dataset = make(odd, tmp_path / "d", max_rejected=0.5)
    first = "artist_0-0.wav-"
    expected = {
        "cut.wav": "incomplete: it is cut off",
        "page.mp3": "not audio: it is a web page",
        "empty.ogg": "empty",
        "silent.flac": "silent",
        "short.flac": "too short: it lasts 0.90 s, and a record 1 s",
        "nan.wav": "damaged: it holds samples that are not finite",
        "copy of a file.wav": f"copy: the same file as {first}",
        "zz other bytes.flac": f"copy: the same sound as {first}",
    }
    rejected = rejected_of(dataset)
    assert set(rejected) == set(expected)
    assert all(rejected[path].startswith(reason) for path, reason in expected.items())
    kept = {record["provenance"]["path"] for _, record in records_of(dataset)}
    planned = {track.location for track in plan_folder(odd).tracks}
    assert kept | set(rejected) == planned
    assert not kept & set(rejected)
    summary = json.loads((dataset.path / run.SUMMARY).read_text())
    assert summary["skipped"] == {"hidden file": 1, "not an audio file by its name": 1}
    assert summary["planned"] == summary["tracks"] + sum(summary["rejected"].values())


def test_copies_share_a_split_and_peaks_fit(odd, tmp_path):
    dataset = make(odd, tmp_path / "d", max_rejected=0.5)
    places: dict[str, set[str]] = {}
    for split, record in records_of(dataset):
        provenance = record["provenance"]
        if provenance["same_as"]:
            places.setdefault(provenance["same_as"], set()).add(split)
        if provenance["path"] == "loud.wav":
            assert provenance["gain"] < 0.3
            assert np.abs(record["waveform"].astype(int)).max() > 30000 or provenance["start_frame"]
    assert len(places) == 1
    assert all(len(own) == 1 for own in places.values())


def test_a_dataset_within_its_own_source_can_be_gone_on_with(music, tmp_path):
    source = Path(shutil.copytree(music, tmp_path / "in"))
    plan = plan_folder(source)
    tracks = partial_folder(source / "d") / "tracks"
    tracks.mkdir(parents=True)
    shutil.copyfile(source / "artist 0" / "1.flac", tracks / "left-by-a-run-that-was-killed.flac")
    again = plan_folder(source)
    assert again.tracks == plan.tracks
    assert again.skipped == {"hidden file": 1}


def test_a_run_that_loses_too_much_stops_and_can_go_on(odd, tmp_path):
    with pytest.raises(UserError, match=r"more than 0\.05 of the 20 tracks are lost.*--max-rejected") as refused:
        make(odd, tmp_path / "d", max_rejected=0.05)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "d").exists()
    assert make(odd, tmp_path / "d", max_rejected=0.5).path == tmp_path / "d"
    assert [file.name for file in tmp_path.iterdir() if file.name != "odd"] == ["d"]


def test_nothing_usable_says_why(tmp_path):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", tune(0, 0.5), SAMPLE_RATE)
    with pytest.raises(UserError, match=r"none of the tracks can be used \(1 too short\)"):
        make(tmp_path / "in", tmp_path / "d")
    (tmp_path / "in" / "a.wav").unlink()
    with pytest.raises(UserError, match="holds no audio file"):
        make(tmp_path / "in", tmp_path / "e")
    with pytest.raises(UserError, match="is not a folder"):
        plan_folder(tmp_path / "nowhere")


def test_a_single_artist_is_divided_by_recording(tmp_path):
    write_collection(tmp_path / "in", artists=1, tracks=4)
    dataset = make(tmp_path / "in", tmp_path / "d")
    assert set(dataset.info.records) == set(SPLITS)
    assert json.loads((dataset.path / run.SUMMARY).read_text())["artists_in_several_splits"]


def test_what_could_not_be_fetched_is_tried_again(music, tmp_path):
    class Unsteady(LocalFolder):
        def fetch(self, tracks):
            for fetched in super().fetch(tracks):
                lost = fetched.track.location == "artist 3/0.ogg"
                yield Fetched(fetched.track, None, "HTTP 503") if lost else fetched

    plan, options = (
        plan_folder(music),
        IngestOptions(chunk_frames=CHUNK, held_out=Fractions(0.2, 0.2), max_rejected=0.0),
    )
    with pytest.raises(UserError, match=r"1 not fetched.*HTTP 503"):
        ingest(plan, Unsteady(music), tmp_path / "d", options, progress=lambda line: None)
    dataset = ingest(plan, LocalFolder(music), tmp_path / "d", options, progress=lambda line: None)
    assert rejected_of(dataset) == {}


def test_a_temporary_file_may_go_when_the_next_one_is_asked_for(music, dataset, tmp_path):
    class Passing:
        def fetch(self, tracks):
            for track in tracks:
                file = tmp_path / "one" / f"download{Path(track.location).suffix}"
                file.parent.mkdir(exist_ok=True)
                shutil.copyfile(music / track.location, file)
                yield Fetched(track, file)
                file.unlink()

    options = IngestOptions(chunk_frames=CHUNK, held_out=Fractions(0.2, 0.2))
    made = ingest(plan_folder(music), Passing(), tmp_path / "d", options, progress=lambda line: None)
    assert hashes(made) == hashes(dataset)


def test_files_on_another_file_system_are_copied(music, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(local.os, "link", lambda *paths: (_ for _ in ()).throw(OSError("cross-device")))
    assert hashes(make(music, tmp_path / "d")) == hashes(dataset)


def test_a_source_that_cannot_be_read_is_no_fault_of_the_output(music, tmp_path, monkeypatch):
    source = Path(shutil.copytree(music, tmp_path / "in"))
    plan = plan_folder(source)

    def link(*paths):
        raise OSError("cross-device")

    def read(file, mode="r"):
        if str(file).endswith("1.mp3"):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return open(file, mode)

    monkeypatch.setattr(local.os, "link", link)
    monkeypatch.setattr(local, "open", read, raising=False)
    made = ingest(
        plan, LocalFolder(source), tmp_path / "d", IngestOptions(chunk_frames=CHUNK), progress=lambda line: None
    )
    out = rejected_of(made)
    assert set(out.values()) == {"not fetched: it cannot be read (Permission denied)"}
    assert all(path.endswith("1.mp3") for path in out)


def test_beam_writes_the_same_bytes(music, dataset, tmp_path, monkeypatch):
    beam = pytest.importorskip("melodjinn_jax.ingest.beam", reason="needs apache-beam, the extra beam")
    monkeypatch.setattr(beam, "load_codec", lambda folder: EnergyCodec())
    monkeypatch.setattr(beam, "_GROUP", 3)
    assert hashes(make(music, tmp_path / "d", beam="runner=FnApiRunner")) == hashes(dataset)


def test_beam_is_asked_for_by_name(music, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "melodjinn_jax.ingest.beam", None)
    with pytest.raises(UserError, match=r"pip install 'melodjinn-jax\[beam\]'"):
        make(music, tmp_path / "d", beam="runner=FlinkRunner")


def test_a_wrong_checksum_is_refused(music, tmp_path):
    plan = plan_folder(music)
    tracks = (replace(plan.tracks[0], sha256="0" * 64), *plan.tracks[1:])
    options = IngestOptions(chunk_frames=CHUNK)
    made = ingest(Plan("folder", tracks), LocalFolder(music), tmp_path / "d", options, progress=lambda line: None)
    assert rejected_of(made)[tracks[0].location].startswith("checksum")


def test_a_full_disk_is_one_sentence_and_loses_nothing(music, dataset, tmp_path, monkeypatch):
    real = soundfile.SoundFile

    def full(path, mode="r", *arguments, **options):
        if mode == "w":
            raise soundfile.LibsndfileError(2)
        return real(path, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(scan.soundfile, "SoundFile", full)
        patch.setattr(scan.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
        with pytest.raises(UserError, match=r"d cannot be written \(No space left on device\)"):
            make(music, tmp_path / "d")
    assert hashes(make(music, tmp_path / "d")) == hashes(dataset)


def test_a_place_that_cannot_be_used_is_named(music, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file is not a DATASET.*choose another --output"):
        make(music, tmp_path / "file")
    with pytest.raises(UserError, match=r"file/d cannot be written"):
        make(music, tmp_path / "file" / "d")
    with claimed(partial_folder(tmp_path / "d"), {}), pytest.raises(UserError, match="another process is at work"):
        make(music, tmp_path / "d")
    with pytest.raises(UserError, match="interrupted run with other settings"):
        make(music, tmp_path / "d")


KILLS = """
import os, sys, json, itertools
from pathlib import Path
sys.path.insert(0, {tests!r})
from ingest_stubs import use_energy_codec
from melodjinn_jax.ingest import run
from melodjinn_jax.ingest.fetch import LocalFolder
from melodjinn_jax.ingest.sources.folder import plan_folder

use_energy_codec(setattr)
source, output = map(Path, sys.argv[1:])
plan, options = plan_folder(source), run.IngestOptions(chunk_frames=75)

def make(name, kill_at=None):
    # A process of its own, which ends without a word at the given one of its renames: most come from deep within.
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    moves = itertools.count()
    for function in ("replace", "rename"):
        def moved(*paths, original=getattr(os, function)):
            if next(moves) == kill_at:
                os._exit(9)
            original(*paths)
        setattr(os, function, moved)
    run.ingest(plan, LocalFolder(source), output / name, options, progress=lambda line: None)
    os._exit(0)

assert make("reference") == 0
for kill_at in itertools.count():
    killed = make(f"{{kill_at}}", kill_at)
    assert make(f"{{kill_at}}") == 0
    if killed == 0:
        break
print(kill_at)
"""


def test_killed_before_any_rename_and_started_again_the_bytes_are_the_same(tmp_path):
    write_collection(tmp_path / "in", artists=3, tracks=1)
    (tmp_path / "out").mkdir()
    script = KILLS.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, str(tmp_path / "in"), str(tmp_path / "out")]
    kills = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert kills > 12  # at the least: two renames for each of three tracks and three shards, and those of the whole
    reference = {file.name: file.read_bytes() for file in (tmp_path / "out" / "reference").rglob("*") if file.is_file()}
    for kill in range(kills):
        made = open_dataset(tmp_path / "out" / str(kill))
        assert {file.name: file.read_bytes() for file in made.path.rglob("*") if file.is_file()} == reference
    assert sorted(os.listdir(tmp_path / "out")) == sorted(["reference", *map(str, range(kills + 1))])


LATIN_1 = b"latin-\xe9.wav".decode(errors="surrogateescape")


@pytest.mark.parametrize(
    "name", ["ünïcode mañana.wav", "semi;colon'$(x).wav", "-dash.wav", "a" * 200 + ".wav", LATIN_1, f"{LATIN_1}/a.wav"]
)
def test_odd_names_go_through(tmp_path, name):
    write_collection(tmp_path / "in", artists=3, tracks=1)
    soundfile.write(tmp_path / "odd.wav", tune(80, 3), SAMPLE_RATE)
    (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "odd.wav").rename(tmp_path / "in" / name)
    dataset = make(tmp_path / "in", tmp_path / "d")
    assert name in {record["provenance"]["path"] for _, record in records_of(dataset)}
    assert all(record["id"].isascii() for _, record in records_of(dataset))
    for _, record in records_of(dataset):
        f"{record['provenance']['artist']} {record['provenance']['title']}".encode()  # they are text


@pytest.mark.parametrize(
    "flag",
    [
        *["--chunk-frames 0", "--max-rejected 2", "--workers -1", "--codec mp3", "--held-out.validation 1"],
        *["--fit.steps 1", "--fit.codebook_size 1", "--codec-weights w", "--bandwidth 5 --codec encodec_24khz"],
    ],
)
def test_the_command_refuses_what_cannot_work(music, tmp_path, monkeypatch, capsys, flag):
    monkeypatch.setattr(run, "_make", None)  # before any work
    assert pipeline.main(["--input", str(music), "--output", str(tmp_path / "d"), *flag.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert flag.split()[0] in said


def test_the_command_and_no_heavy_import(tmp_path):
    """Over real files, good, odd and malformed: the real fitted codec, in its smallest form."""
    source = SHARED if SHARED.is_dir() else tmp_path / "in"
    if not SHARED.is_dir():
        write_collection(source)
    script = (
        "import sys\nfrom data_pipelines import folder\n"
        "assert folder.main(sys.argv[1:]) == 0\n"
        "assert not {'torch', 'tensorflow'} & set(sys.modules)\n"
    )
    arguments = ["--input", source, "--output", tmp_path / "d", "--chunk-frames", "150"]
    arguments += ["--fit.steps", "2", "--fit.codebook-size", "4", "--fit.num-codebooks", "1"]
    subprocess.run([sys.executable, "-c", script, *map(str, arguments)], check=True, capture_output=True)
    dataset = open_dataset(tmp_path / "d")
    dataset.verify()
    provenance = [(split, record["provenance"]) for split, record in records_of(dataset)]
    kept, out = {one["path"] for _, one in provenance}, rejected_of(dataset)
    assert sorted([*kept, *out]) == sorted(track.location for track in plan_folder(source).tracks)
    if source == SHARED:
        kinds = Counter(reason.partition(":")[0] for reason in out.values())
        del kinds["too short"]
        assert kinds == {"not audio": 5, "empty": 2, "incomplete": 1}
        places: dict[str, set[str]] = {}
        for split, one in provenance:
            places.setdefault(one["path"], set()).add(split)
        for left, right in PAIRS:
            assert places[f"music/{left}"] == places[f"music/{right}"]
            assert len(places[f"music/{left}"]) == 1
        assert len({one["same_as"] for _, one in provenance if one["same_as"]}) == len(PAIRS)
