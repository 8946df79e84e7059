"""The page in a real browser: what it sounds like, what it saves, and what it says when it cannot."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from browser import HOP, Page, launched, served
from conftest import OPTIMISED

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from melodjinn_jax.data.one_shots import one_shots_for
from melodjinn_jax.errors import UserError
from melodjinn_jax.export import export_site
from melodjinn_jax.live.generator import generate
from melodjinn_jax.live.onnx.runtime import runtime_files
from melodjinn_jax.live.prompt import make_prompt
from melodjinn_jax.live.session import Sampling, Session, require_instrument
from melodjinn_jax.live.stream import instrument_of, render_codes
from melodjinn_jax.training.run import Run, load_run

ROOT = Path(__file__).parents[1]
SILENCE = 2e-3
NULL_ACTION = 65535
HIT_FRAMES = 12
PLAYED_FRAMES = 251  # of what Python plays too: one length, compiled once


def train_toy(workdir: Path) -> Path:
    """The toy of the README, without its evaluation."""
    command = [sys.executable, "-m", "melodjinn_jax.train", "--config", "experiments/toy_drums.py"]
    flags = ["--workdir", str(workdir), "--runtime.evaluate", "false", "--runtime.progress", "false"]
    subprocess.run([*command, *flags], cwd=ROOT, env=OPTIMISED, check=True, capture_output=True)
    return workdir


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def run(browser, tmp_path_factory) -> Run:
    """Trained only where there is a browser."""
    return load_run(str(train_toy(tmp_path_factory.mktemp("toy") / "run")))


@pytest.fixture(scope="module")
def site(run, tmp_path_factory):
    """The address of the exported site, in a subfolder."""
    try:
        runtime = runtime_files("")
    except UserError as error:
        pytest.skip(str(error))
    root = tmp_path_factory.mktemp("www")
    export_site(run, root / "some" / "where", "float32", make_prompt(run, ""), runtime)
    with served(root) as address:
        yield f"{address}/some/where/"


@pytest.fixture(scope="module")
def server(run):
    """The address of the play command."""
    command = [sys.executable, "-m", "melodjinn_jax.play", "--workdir", str(run.workdir.path), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--no-browser", "--listeners", "1"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process.stdout.readline().split()[2]
    process.terminate()
    process.communicate()


@pytest.fixture(scope="module", params=["site", "server"])
def playing(request, browser):
    """A page of either kind that was clicked once and has greeted, greedy from then on."""
    page = Page(browser, request.getfixturevalue(request.param)).open()
    page.start()
    page.page.evaluate("document.getElementById('sound-panel').open = true")
    page.page.fill("#temperature", "0")
    yield page
    page.close()


def performed(run: Run, keys: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Codes [F, Q] that JAX plays under keys after the silent prompt, greedily, and the action of every frame."""
    prompt = make_prompt(run, "").codes
    given = np.zeros((1, len(prompt) + len(keys), prompt.shape[1]), np.int32)
    given[0, : len(prompt)] = prompt
    actions = np.concatenate([np.zeros(len(prompt) - 1, int), keys])
    codes = generate(run.models, run.state["dynamics"], given, len(prompt), actions[None])[0]
    return codes.copy(), np.concatenate([[NULL_ACTION], actions])


@pytest.fixture(scope="module")
def hits(run) -> np.ndarray:
    """The sound of each key, [keys, samples], as Python renders a press in silence."""
    sounds = []
    for key in range(1, run.action_space.num_keys + 1):
        codes, _ = performed(run, [0] * 20 + [key] + [0] * HIT_FRAMES)
        sounds.append(render_codes(run.codec, codes)[-(HIT_FRAMES + 1) * HOP :])
    return np.stack(sounds)


def spectrum(sound: np.ndarray) -> np.ndarray:
    """Levels in bands of a hit, wherever in the first frames it begins."""
    power = np.abs(np.fft.rfft(sound)) ** 2
    return np.log(np.stack([band.sum() for band in np.array_split(power, 40)]) + 1e-3)


def nearest(sound: np.ndarray, templates: np.ndarray) -> int:
    distances = [np.abs(spectrum(sound) - spectrum(template)).sum() for template in templates]
    return int(np.argmin(distances))


def test_the_keys_are_the_drums_of_the_world(run, hits):
    """What the next tests take for granted: every drum has one key."""
    drums = one_shots_for(run.config.data).waveforms
    length = hits.shape[1]
    padded = np.pad(drums, ((0, 0), (0, max(0, length - drums.shape[1]))))[:, :length]
    assert sorted(nearest(hit, padded) for hit in hits) == list(range(len(drums)))


def test_one_click_and_every_key_sounds(browser, site, hits):
    page = Page(browser, site).open()
    page.page.click("#start")  # at once, before the model has come
    report = page.wait_until_heard(150)
    greeting = page.sound(0, report["at"])
    loud = np.abs(greeting) > 0.05
    onsets = [i for i in np.flatnonzero(loud) if not loud[max(0, i - 12 * HOP) : i].any()]
    # A gap may cut a hit in two on a busy machine: what counts is that every key was heard.
    assert {nearest(greeting[max(0, i - 160) :][: hits.shape[1]], hits) for i in onsets} == set(range(len(hits)))
    assert not page.errors
    page.close()


def press_after_a_pause(page: Page, key: int) -> tuple[dict, dict]:
    """Pause, press: the reports of before the press, and of after the hit."""
    page.wait_until_heard(page.report()["heard"] + 40)
    before = page.pause()
    page.page.keyboard.press(str(key))
    return before, page.wait_until_heard(before["heard"] + before["buffered"] + HIT_FRAMES + 4)


@pytest.mark.parametrize("key", [1, 2, 3])
def test_a_key_plays_its_drum_as_soon_as_the_buffer_has_run_out(playing, hits, key):
    """Counted in samples of what was sent to the loudspeaker; while paused, no time passes for the buffer."""
    for _ in range(5):
        before, after = press_after_a_pause(playing, key)
        if after["underruns"] == before["underruns"]:  # a gap would shift what is counted
            break
    else:
        pytest.fail("this machine is too busy to play 30 frames without a gap")
    assert before["buffered"] <= before["target"] + 1
    made = before["heard"] + before["buffered"]  # the frame that the press governs
    start = after["at"] - (after["heard"] - made) * HOP
    sound = playing.sound(start - before["buffered"] * HOP, start + (HIT_FRAMES + 1) * HOP)
    until = int(before["buffered"] * HOP)
    assert np.abs(sound[:until]).max() < SILENCE, "nothing is heard of the press before its frame"
    onset = np.flatnonzero(np.abs(sound[until:]) > 0.03)[0]
    assert onset < 2 * HOP
    assert nearest(sound[until:], hits) == key - 1


def test_noop_is_silent(playing):
    start = playing.wait_until_heard(playing.report()["heard"] + 60)
    end = playing.wait_until_heard(start["heard"] + 80)
    sound = playing.sound(start["at"], end["at"])
    assert len(sound) > 60 * HOP
    assert np.abs(sound).max() < SILENCE


def full_scale(sound: np.ndarray) -> np.ndarray:
    """What a WAV file of 16 bits can hold of it."""
    return np.clip(sound, -1, 1)


def test_a_session_of_python_renders_in_the_page_as_in_python(run, playing, tmp_path):
    rng = np.random.default_rng(0)
    keys = [int(rng.integers(1, 4)) if rng.random() < 0.1 else 0 for _ in range(PLAYED_FRAMES - 1)]
    codes, actions = performed(run, keys)
    codes[60:90] = rng.integers(0, run.codec.codebook_size, codes[60:90].shape)  # sounds that no model would play
    session = Session(instrument_of(run), Sampling(seed=3, temperature=0.0), codes, actions)
    file = tmp_path / "python.melodjinn"
    file.write_bytes(session.to_bytes({"engine": "jax"}))
    playing.new_take(lambda: playing.page.set_input_files("#file", str(file)))
    playing.wait_until_heard(session.end + 20)
    playing.pause()
    wav, rate = soundfile.read(io.BytesIO(playing.download("#wav")), dtype="float32")
    saved, made_with = Session.from_bytes(playing.download("#save"))
    playing.page.click("#toggle")
    assert rate == run.codec.sample_rate
    expected = full_scale(render_codes(run.codec, codes))
    assert np.abs(wav[: len(expected)] - expected).max() < 1e-3
    # And what the page played on from there is a session that Python renders to the page's sound.
    require_instrument(saved, instrument_of(run), to_continue=True)
    assert made_with["engine"] in ("onnx", "jax")
    np.testing.assert_array_equal(saved.codes[: len(codes)], codes)
    np.testing.assert_array_equal(saved.actions[: len(codes)], actions)
    assert saved.end > session.end
    assert np.abs(wav - full_scale(render_codes(run.codec, saved.codes))).max() < 1e-3


def test_what_the_page_played_is_what_python_would_have_played(run, playing):
    """Greedy codes have no randomness to differ in."""
    playing.new_take(lambda: playing.page.click("#restart"))
    for key in "1322":
        playing.page.keyboard.press(key)
        playing.wait_until_heard(playing.report()["heard"] + 25)
    playing.wait_until_heard(PLAYED_FRAMES + 1)
    saved, _ = Session.from_bytes(playing.download("#save"))
    codes, actions = performed(run, [int(action) for action in saved.actions[1:PLAYED_FRAMES]])
    np.testing.assert_array_equal(saved.actions[:PLAYED_FRAMES], actions)
    assert [action for action in saved.actions[1:] if action] == [1, 3, 2, 2]
    np.testing.assert_array_equal(saved.codes[:PLAYED_FRAMES], codes)


def test_presses_on_the_beat_fall_on_beats(playing):
    playing.page.fill("#bpm", "120")  # 37.5 frames to a beat
    playing.page.press("#bpm", "Tab")
    playing.page.check("#beat:enabled")
    begin = int(playing.report()["heard"])
    for key in "132":
        playing.page.focus("#toggle")
        playing.page.keyboard.press(key)
        playing.wait_until_heard(playing.report()["heard"] + 50)
    playing.page.uncheck("#beat")
    saved, _ = Session.from_bytes(playing.download("#save"))
    hits = begin + np.flatnonzero(saved.actions[begin:])
    assert list(saved.actions[hits]) == [1, 3, 2]
    beats = np.diff(hits) / 37.5
    np.testing.assert_allclose(beats, beats.round(), atol=1 / 37.5)
    assert beats.min() > 0.5


def test_going_back_forgets_what_came_after_and_keeps_it_aside(playing):
    playing.new_take(lambda: playing.page.click("#restart"))
    playing.page.keyboard.press("2")
    playing.wait_until_heard(200)
    playing.page.keyboard.press("3")
    playing.wait_until_heard(220)
    playing.new_take(lambda: playing.page.keyboard.press("ArrowLeft"))
    playing.pause()
    branch, _ = Session.from_bytes(playing.download("#save"))
    kept, _ = Session.from_bytes(playing.download("#moments li:last-child button:last-child"))
    assert {2, 3} < set(kept.actions)
    assert 3 not in branch.actions
    np.testing.assert_array_equal(branch.codes[:60], kept.codes[:60])
    playing.new_take(lambda: playing.page.click("#moments li:last-child button:first-child"))
    again, _ = Session.from_bytes(playing.download("#save"))
    np.testing.assert_array_equal(again.codes[: kept.end], kept.codes)


def test_a_damaged_session_is_one_sentence_and_the_music_goes_on(playing, tmp_path):
    content = bytearray(playing.download("#save"))
    content[-1] ^= 1
    damaged = tmp_path / "damaged.melodjinn"
    damaged.write_bytes(content)
    playing.page.set_input_files("#file", str(damaged))
    assert re.match("[Tt]h(e|is) session file is damaged", playing.problem)
    playing.wait_until_heard(playing.report()["heard"] + 20)


def altered(content: bytes) -> bytes:
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("model/dynamics.onnx", altered, "The file model/dynamics.onnx was altered or cut short"),
        ("model/decoder.onnx", lambda content: content[:1000], "The file model/decoder.onnx was altered or cut short"),
        ("model/dynamics.onnx", None, "The file model/dynamics.onnx is missing from this site"),
        ("model/manifest.json", None, "The file model/manifest.json is missing from this site"),
        ("model/manifest.json", lambda _: b"{", "The file model/manifest.json is damaged or of another version"),
        (
            "engine-worker.js",
            lambda content: b"WebAssembly.validate = () => false;\n" + content,
            "This browser has no WebAssembly SIMD, which the model needs: use a newer browser.",
        ),
    ],
)
def test_what_cannot_play_says_so_in_one_sentence(browser, site, name, change, sentence):
    page = Page(browser, site)

    def answer(route):
        if change is None:
            route.fulfill(status=404)
        else:
            route.fulfill(response=(response := route.fetch()), body=change(response.body()))

    page.page.route(f"**/{name}", answer)
    page.open()
    assert page.problem.startswith(sentence)
    assert page.problem.count(".") <= 1 + sentence.count(".")
    page.close()


def test_a_browser_that_keeps_the_page_silent_says_what_to_click(browser, site):
    page = Page(browser, site, "AudioContext.prototype.resume = () => new Promise(() => {});").open()
    page.page.click("#start")
    assert page.problem.startswith("The browser keeps this page silent")
    assert page.page.is_enabled("#start")
    page.close()


def test_no_audio_device_and_no_secure_address_are_one_sentence(browser, site):
    for script, sentence in (
        ("window.AudioContext = class { constructor() { throw new Error(); } };", "No audio device can be opened"),
        ("delete window.AudioWorkletNode;", "This browser cannot play live audio"),
    ):
        page = Page(browser, site)
        page.page.add_init_script(script)
        page.open().page.click("#start")
        assert page.problem.startswith(sentence)
        page.close()


def test_everything_has_a_name_for_a_screen_reader_and_pads_work_by_click(playing):
    names = playing.page.evaluate(
        "[...document.querySelectorAll('button, input, canvas, progress')].filter((e) => !e.labels?.length).map("
        "(e) => (e.getAttribute('aria-label') || e.textContent).trim())"
    )
    assert all(names), names
    before = playing.report()
    playing.page.focus(".pad[data-key='2']")
    playing.page.keyboard.press("Enter")
    playing.wait_until_heard(before["heard"] + 40)
    saved, _ = Session.from_bytes(playing.download("#save"))
    assert 2 in saved.actions[int(before["heard"]) :]
    assert not playing.errors
