"""The commands of the sources: a plan is one JSON object and nothing else; a DATASET gets the plan and a fetcher."""

import json
import subprocess
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from faulty_server import serving
from test_fetch import bring, sound, tar_of
from test_sources import HEADER, MAESTRO_ROWS, MTG_ROWS, jamendo_row, write_csv, write_jsonl

from data_pipelines import jamendo_maxcaps, maestro, mtg_jamendo
from melodjinn_jax.ingest.archives import NumberedTars, OneZip
from melodjinn_jax.ingest.fetch import LocalFolder
from melodjinn_jax.ingest.links import Links
from melodjinn_jax.ingest.plan import Fractions


@dataclass(frozen=True)
class IngestOptions:
    """Stands for the options of the pipeline."""

    codec: str = "fitted"
    held_out: Fractions = field(default_factory=Fractions)


@pytest.fixture(autouse=True)
def ingested(monkeypatch) -> list[tuple]:
    """What the pipeline was called with."""
    calls: list[tuple] = []

    def ingest(*args):
        calls.append(args)
        info = types.SimpleNamespace(records={"train": 2, "test": 1})
        return types.SimpleNamespace(path=args[2], info=info)

    pipeline = types.ModuleType("melodjinn_jax.ingest.run")
    vars(pipeline).update(IngestOptions=IngestOptions, ingest=ingest)
    monkeypatch.setitem(sys.modules, "melodjinn_jax.ingest.run", pipeline)
    return calls


@pytest.fixture
def metadata(tmp_path) -> Path:
    """A folder with metadata of every source."""
    (tmp_path / "tracks.tsv").write_bytes((HEADER + "".join(MTG_ROWS)).encode())
    rows = [jamendo_row(1, "techno"), jamendo_row(2, "techno", audiodownload_allowed=False), jamendo_row(3, "house")]
    write_jsonl(tmp_path / "2008-01-01.jsonl", *rows)
    write_csv(tmp_path / "maestro.csv", MAESTRO_ROWS)
    return tmp_path


def test_plans_are_one_object(metadata, capsys, ingested):
    assert jamendo_maxcaps.main(f"--metadata {metadata} --tags techno --plan".split()) == 0
    out, err = capsys.readouterr()
    plan = json.loads(out)
    assert err == ""
    splits = plan.pop("splits")
    assert plan == {
        "tracks": 1,
        "hours": round(321 / 3600, 3),
        "artists": 1,
        "licences": {"http://creativecommons.org/licenses/by-nc-nd/3.0/": 1},
        "skipped": {"download not allowed": 1, "without the tags asked for": 1},
    }
    assert list(splits) == ["train", "validation", "test"]
    assert sum(split["tracks"] for split in splits.values()) == 1
    maestro.main(f"--metadata {metadata}/maestro.csv --plan --codec fitted --output there".split())
    plan = json.loads(capsys.readouterr().out)
    assert {name: split["tracks"] for name, split in plan["splits"].items()} == dict.fromkeys(plan["splits"], 1)
    held_out = "--held-out.validation 1 --held-out.test 0 --tags genre---techno genre---chillout"
    assert mtg_jamendo.main(f"--metadata {metadata}/tracks.tsv --plan {held_out}".split()) == 2
    assert "must not be negative and leave something for training" in capsys.readouterr().err
    assert ingested == []


def test_the_pipeline_gets_plan_fetcher_and_options(metadata, ingested, capsys):
    audio = f"--input {metadata}"
    assert maestro.main(f"--metadata {metadata}/maestro.csv --output out --codec fitted {audio}".split()) == 0
    mtg_jamendo.main(f"--metadata {metadata}/tracks.tsv --tags genre---techno --output a/out".split())
    jamendo_maxcaps.main(f"--metadata {metadata} --output out --downloads elsewhere".split())
    maestro.main(f"--metadata {metadata}/maestro.csv --output out --held-out.test 0.2".split())
    assert [plan.source for plan, *_ in ingested] == ["maestro", "mtg_jamendo", "jamendo_maxcaps", "maestro"]
    assert [type(fetcher) for _, fetcher, *_ in ingested] == [LocalFolder, NumberedTars, Links, OneZip]
    assert [output for _, _, output, _ in ingested] == [Path(name) for name in ("out", "a/out", "out", "out")]
    assert ingested[3][3] == IngestOptions(held_out=Fractions(test=0.2))
    assert [track.split for track in ingested[1][0].tracks] == [None, None]
    assert capsys.readouterr().out.splitlines()[0] == "out: 2 train, 1 test records"


def test_a_source_goes_all_the_way_to_its_audio(metadata, ingested, tmp_path):
    with serving() as site:
        members = {"50/1950.low.mp3": sound(1950), "21/1021.low.mp3": sound(1021)}
        for number in ("50", "21"):
            site.files[f"/raw/audio-low/raw_30s_audio-low-{number}.tar"] = tar_of(members)
        arguments = (
            f"--metadata {metadata}/tracks.tsv --tags genre---techno --quality audio-low --output {tmp_path}/out"
        )
        assert mtg_jamendo.main([*arguments.split(), "--address", f"{site.address}/raw"]) == 0
        plan, fetcher, _, _ = ingested[0]
        found = bring(fetcher, list(plan.tracks), tmp_path / "out.downloads")
    assert found == {"track_0001950": sound(1950), "track_0001021": sound(1021)}


def test_the_folder_at_hand_may_be_the_dataset(metadata, ingested, monkeypatch):
    (metadata / "here").mkdir()
    monkeypatch.chdir(metadata / "here")
    assert maestro.main(["--metadata", "../maestro.csv", "--output", "."]) == 0
    assert ingested[0][1]._folder == metadata / "here.downloads"


def test_jamendo_tracks_come_from_their_own_addresses(metadata, ingested, tmp_path):
    with serving() as site:
        site.files["/1.mp3"] = sound(1)
        rows = [jamendo_row(1, "techno", audiodownload=f"{site.address}/1.mp3"), jamendo_row(2, audiodownload=None)]
        write_jsonl(metadata / "2008-01-01.jsonl", *rows)
        assert jamendo_maxcaps.main(f"--metadata {metadata} --output {tmp_path}/out".split()) == 0
        plan, fetcher, _, _ = ingested[0]
        found = bring(fetcher, list(plan.tracks), tmp_path / "out.downloads", most=4)
    assert found == {"1": sound(1), "2": "no address to download from"}


def test_jamendo_tracks_come_out_of_shards_if_asked(metadata, ingested):
    pytest.importorskip("huggingface_hub", reason="the client of the Hub is not installed")
    assert jamendo_maxcaps.main(f"--metadata {metadata} --audio-from hub --output out".split()) == 0
    assert type(ingested[0][1]).__name__ == "HubShards"


def test_reading_and_fetching_need_no_framework():
    script = (
        "import sys\n"
        "from data_pipelines import jamendo_maxcaps, maestro, mtg_jamendo\n"
        "print(*sorted({'jax', 'tensorflow', 'torch'} & sys.modules.keys()))\n"
    )
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert found.stdout.split() == []


@pytest.mark.parametrize(
    ("command", "arguments", "complaint"),
    [
        (maestro, "--metadata maestro.csv", "give --output DATASET, or --plan"),
        (maestro, "--metadata nowhere.csv --plan", "nowhere.csv cannot be read"),
        (maestro, "--metadata maestro.csv --output o --input nowhere", "--input nowhere is not a folder"),
        (maestro, "--plan", "--metadata"),
        (maestro, "--metadata maestro.csv --plan --sha25 x", "perhaps you meant --sha256"),
        (mtg_jamendo, "--metadata tracks.tsv --plan --tags techno", "perhaps you meant genre---techno"),
        (mtg_jamendo, "--metadata maestro.csv --plan", "is not a TSV of MTG-Jamendo"),
        (mtg_jamendo, "--metadata tracks.tsv --plan --split 2", "--split 2: there is no"),
        (jamendo_maxcaps, "--metadata . --plan --tags tekno", "perhaps you meant techno"),
        (jamendo_maxcaps, "--metadata . --output o --connections 0", "--connections 0"),
        (jamendo_maxcaps, "--metadata nowhere --plan", "nowhere cannot be read"),
    ],
)
def test_what_cannot_work_is_one_sentence(metadata, monkeypatch, capsys, command, arguments, complaint):
    monkeypatch.chdir(metadata)
    assert command.main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert complaint in err
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
