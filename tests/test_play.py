"""The play command: what cannot work is said in one sentence; the server's end and the model's failure."""

import asyncio
import socket

import numpy as np
import pytest
from live_client import mock_stage
from live_runs import random_run

from melodjinn_jax import play
from melodjinn_jax.config import EvaluationConfig
from melodjinn_jax.data.audio import write_wav
from melodjinn_jax.errors import UserError
from melodjinn_jax.live.mock import MockStreamer
from melodjinn_jax.live.prompt import make_prompt
from melodjinn_jax.live.protocol import NO_ACTION
from melodjinn_jax.live.replay import batch_of, read_session
from melodjinn_jax.live.server import Server, serve


def run_play(monkeypatch, capsys, *arguments: str) -> str:
    """What the command says on standard error when it refuses its arguments."""
    monkeypatch.setattr("sys.argv", ["play", *arguments])
    assert play.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give either --workdir DIR or --mock"),
        (("--mock", "--workdir", "x"), "give either --workdir DIR or --mock"),
        (("--mock", "--prompt", "x.wav"), "--prompt needs a --workdir"),
        (("--mock", "--port", "70000"), "--port is 70000"),
        (("--mock", "--listeners", "0"), "--listeners is 0"),
        (("--mock", "--seed", "-1"), "--seed is -1"),
        (("--mock", "--temperature", "nan"), "--temperature is nan"),
        (("--mock", "--strength", "9"), "--strength is 9"),
        (("--mock", "--top-k", "-3"), "--top-k is -3"),
        (("--mock", "--temprature", "1"), "perhaps you meant --temperature"),
        (("--workdir", "/nowhere"), "/nowhere"),
    ],
)
def test_what_cannot_work_is_said(monkeypatch, capsys, arguments, sentence):
    assert sentence in run_play(monkeypatch, capsys, *arguments)


def test_a_port_in_use_is_named(monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"--port {port} is in use" in run_play(monkeypatch, capsys, "--mock", "--no-browser", "--port", port)


def test_a_host_that_is_not_here_is_named(monkeypatch, capsys):
    said = run_play(monkeypatch, capsys, "--mock", "--no-browser", "--host", "192.0.2.1", "--port", "0")
    assert "--host 192.0.2.1" in said


def test_the_address_is_printed_with_its_token_and_opened(monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    play.announce(play.PlayArguments(mock=True), "sesame", 99)
    assert opened == ["http://127.0.0.1:99/?token=sesame"]
    assert opened[0] in capsys.readouterr().out
    play.announce(play.PlayArguments(mock=True, host="::1", browser=False), "", 99)
    assert "http://[::1]:99/ " in capsys.readouterr().out
    assert len(opened) == 1


def test_a_model_that_fails_ends_the_command(monkeypatch):
    class Broken(MockStreamer):
        def step(self, frames):
            raise RuntimeError("the device is gone")

    monkeypatch.setattr("melodjinn_jax.live.server._CLOSE_SECONDS", 0.0)
    stage = mock_stage(streamer=Broken(1))

    async def scene():
        server = Server(stage, "")

        def ready(port: int) -> None:
            performance = stage.perform()
            performance.playing = True
            server._conductor.sit(performance, lambda audio: None, lambda: None)

        await serve(server, "127.0.0.1", 0, ready)

    with pytest.raises(RuntimeError, match="the device is gone"):
        asyncio.run(asyncio.wait_for(scene(), 60))


@pytest.mark.parametrize("stride", [1, 4])
def test_a_prompt_is_whole_blocks_of_a_recording_or_of_silence(tmp_path, stride):
    run = random_run(stride)
    silence = make_prompt(run, "")
    assert silence.codes.shape == (stride, 2)
    assert silence.actions.tolist() == [NO_ACTION] * stride
    path = tmp_path / "prompt.wav"
    write_wav(path, np.random.default_rng(0).normal(0, 0.1, 320 * 10 + 7))
    prompt = make_prompt(run, str(path))
    assert prompt.codes.shape == (10 // stride * stride, 2)
    # Without a LAM nobody knows what happens in it.
    assert prompt.actions.tolist() == [NO_ACTION] * len(prompt.codes)
    write_wav(path, np.zeros(320 * stride - 1))
    with pytest.raises(UserError, match=r"prompt\.wav: shorter than"):
        make_prompt(run, str(path))


def test_session_files_that_are_none_are_named(tmp_path):
    with pytest.raises(UserError, match="none cannot be read"):
        read_session(str(tmp_path / "none"))
    path = tmp_path / "take.melodjinn"
    path.write_bytes(b"not one")
    with pytest.raises(UserError, match=r"take\.melodjinn: this is no session file"):
        read_session(str(path))


@pytest.mark.parametrize(
    ("made_with", "batch"),
    [
        ({"batch": 4, "slot": 3}, (4, 3)),
        ({"batch": 4, "slot": 4}, (1, 0)),
        ({"batch": 10**9, "slot": 3}, (1, 0)),
        ({"batch": "4", "slot": None}, (1, 0)),
        ({}, (1, 0)),
    ],
)
def test_the_batch_of_a_session_is_taken_where_it_makes_sense(made_with, batch):
    assert batch_of(made_with) == batch


def test_a_run_plays_as_it_is_evaluated_unless_told_otherwise():
    usual = EvaluationConfig(temperature=0.7, strength=2.0)
    sampling = play.make_sampling(play.PlayArguments(seed=3, top_k=5), usual)
    assert (sampling.seed, sampling.temperature, sampling.top_k, sampling.strength) == (3, 0.7, 5, 2.0)
    told = play.make_sampling(play.PlayArguments(temperature=0.0, strength=1.0), usual)
    assert (told.temperature, told.strength) == (0.0, 1.0)
    with pytest.raises(UserError, match="--strength is 4"):
        play.make_sampling(play.PlayArguments(), EvaluationConfig(strength=4.0))
