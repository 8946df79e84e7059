"""What a DATASET holds is told in words and on one page that needs nothing else."""

import re
from pathlib import Path

import numpy as np
import pytest
from ingest_stubs import EnergyCodec, use_energy_codec, write_collection

from data_pipelines import inspect as command
from melodjinn_jax.data.audio import SAMPLE_RATE
from melodjinn_jax.data.dataset import open_dataset
from melodjinn_jax.data.records import Record
from melodjinn_jax.data.writer import write_dataset
from melodjinn_jax.ingest import contents as module
from melodjinn_jax.ingest.contents import describe, read_contents
from melodjinn_jax.ingest.fetch import LocalFolder
from melodjinn_jax.ingest.page import render_contents, spectrogram
from melodjinn_jax.ingest.plan import Fractions
from melodjinn_jax.ingest.run import IngestOptions, ingest
from melodjinn_jax.ingest.sources.folder import plan_folder


@pytest.fixture(autouse=True)
def _energy_codec(monkeypatch):
    monkeypatch.setattr(module, "load_codec", lambda folder: EnergyCodec())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("music")
    write_collection(source)
    (source / "artist 0").rename(source / "<b>Bad & Ugly")
    (source / "broken <i>.wav").write_text("no sound")
    (source / "copy.mp3").write_bytes((source / "artist 1" / "1.mp3").read_bytes() + b"\0" * 9)
    options = IngestOptions(chunk_frames=75, held_out=Fractions(0.2, 0.2))
    with pytest.MonkeyPatch.context() as patch:
        use_energy_codec(patch.setattr)
        made = ingest(plan_folder(source), LocalFolder(source), source / "dataset", options, progress=lambda line: None)
    return made.path


def test_the_numbers_are_those_of_the_files(dataset):
    contents = read_contents(open_dataset(dataset), 4)
    text = describe(contents)
    assert "rejected: 2 of 12 tracks, not audio (1), copy (1)" in text or "copy (1), not audio (1)" in text
    assert f"{sum(contents.dataset.info.records.values())} records of 75 frames" in text
    assert sum(contents.hours_by("artist").values()) == pytest.approx(sum(t["seconds"] for t in contents.tracks) / 3600)
    assert contents.bits_per_second == 2 * 8 * 75
    assert {chunk.split for chunk in contents.chunks} == {"train", "validation", "test"}


def test_one_chunk_is_one_of_the_training_split(dataset):
    assert [chunk.split for chunk in read_contents(open_dataset(dataset), 1).chunks] == ["train"]
    assert read_contents(open_dataset(dataset), 0).chunks == []


def test_the_page_is_whole_and_safe(dataset):
    page = render_contents(read_contents(open_dataset(dataset), 4))
    assert "<b>Bad" not in page
    assert "&lt;b&gt;Bad &amp; Ugly" in page
    assert "broken &lt;i&gt;.wav" in page
    assert page.count("<audio") == page.count('class="spectrogram"') == 2 * 4
    addresses = re.findall(r'(?:src|href)="([^"]{1,20})', page)
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "$" not in re.sub(r"data:[^\"]*", "", page)


def test_a_tone_is_bright_at_its_pitch(monkeypatch):
    images = []
    monkeypatch.setattr("matplotlib.image.imsave", lambda file, image, **options: images.append(image))
    tone = np.sin(2 * np.pi * 1000 * np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)
    spectrogram(tone, SAMPLE_RATE, "a tone")
    rows = np.geomspace(40, 12000, len(images[0]))
    assert 950 < rows[images[0].mean(axis=1).argmax()] < 1050


def test_a_world_without_tracks_is_shown_too(tmp_path):
    sound, codes = np.ones((5, 320), np.int16), np.ones((5, 2), np.uint16)
    write_dataset(
        tmp_path / "d",
        {"train": [Record(f"clip{index}", sound, codes) for index in range(3)]},
        codec=EnergyCodec(),
        fingerprint={},
        shards={"train": 1},
    )
    contents = read_contents(open_dataset(tmp_path / "d"), 2)
    assert "train: 3 records" in describe(contents)
    assert "Has no validation and no test split" in render_contents(contents)


def test_the_command(dataset, tmp_path, capsys):
    assert command.main([str(dataset), "--chunks", "0"]) == 0
    assert (dataset.parent / "dataset.html").is_file()
    assert "train:" in capsys.readouterr().out
    assert command.main([str(dataset), "--page", str(tmp_path / "none" / "page.html")]) == 2
    assert "--page" in capsys.readouterr().err
    assert command.main([str(tmp_path)]) == 2
    assert "is not a DATASET" in capsys.readouterr().err
    assert command.main([str(dataset), "--chunks", "-1"]) == 2
    assert "--chunks -1" in capsys.readouterr().err


def test_a_damaged_list_is_named(dataset, tmp_path, capsys):
    content = (dataset / "rejected.jsonl").read_bytes()
    try:
        (dataset / "rejected.jsonl").write_bytes(b"{" + content[1:-2] + b"\n\n")
        assert command.main([str(dataset), "--page", str(tmp_path / "page.html")]) == 2
        assert "rejected.jsonl is damaged" in capsys.readouterr().err
    finally:
        (dataset / "rejected.jsonl").write_bytes(content)
