"""The exported graphs compute what JAX computes, and the site holds what its manifest says."""

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from encodec_weights import published_weights
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from melodjinn_jax import export
from melodjinn_jax.codecs import Codec, EncodecCodec, FittedCodec, MusicCodec, fit_codec
from melodjinn_jax.codecs.base import read_codec_files
from melodjinn_jax.codecs.encodec.weights import fold
from melodjinn_jax.codecs.fitted import LATENT_DIM, initial_params
from melodjinn_jax.config import CodecConfig, DynamicsConfig
from melodjinn_jax.errors import UserError
from melodjinn_jax.live.generator import sample
from melodjinn_jax.live.onnx import runtime
from melodjinn_jax.live.onnx.codecs import decoder_graph
from melodjinn_jax.live.onnx.dynamics import frame_graph
from melodjinn_jax.live.onnx.player import FramePlayer, SoundPlayer, compare
from melodjinn_jax.live.prompt import make_prompt
from melodjinn_jax.live.session import model_digest
from melodjinn_jax.models.action_space import ActionSpace
from melodjinn_jax.training.phases import PhaseRecord
from melodjinn_jax.training.run import Run, make_models
from melodjinn_jax.training.state import Phase
from melodjinn_jax.training.workdir import WorkDir

CODEBOOKS, SIZE = 2, 16


def fitted_codec() -> FittedCodec:
    entries = np.random.default_rng(0).normal(size=(CODEBOOKS, SIZE, LATENT_DIM)).astype(np.float32)
    entries[:, 0] = 0
    return FittedCodec(initial_params(jax.random.key(0)), entries, 0.7)


def make_run(
    folder: Path, stride: int = 1, dtype: str = "float32", codec: Codec | None = None, layout: str = "flat"
) -> Run:
    """A run with random weights, as `load_run` gives one."""
    codec = codec or fitted_codec()
    config = tiny_config()
    config = dataclasses.replace(
        config,
        latent_actions=dataclasses.replace(config.latent_actions, action_stride=stride),
        training=dataclasses.replace(config.training, dtype=dtype),
        # One of the layouts has practised, and both have actions that only the last block knows.
        dynamics=dataclasses.replace(
            config.dynamics,
            layout=layout,
            depth_dim=8,
            depth_layers=2,
            practice_rate=0.1 * (layout == "depth"),
            action_block=1,
        ),
    )
    workdir = WorkDir(folder)
    codec.save(workdir.codec)
    models = make_models(config, codec)
    space = ActionSpace(stride, (0, 1, 2, 3), "0" * 64)
    record = PhaseRecord(Phase.FROZEN)
    params = louder(models.init_dynamics(jax.random.key(1)))
    return Run(workdir, config, codec, models, 12, record, space, {"dynamics": params})


def louder(params):
    """Scales and sinks off their initial ones and zeros, so that leaving one out shows."""
    keys = iter(jax.random.split(jax.random.key(2), 100))
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), params)


def graph_of(run: Run, weights="float32"):
    codec = run.codec
    shape = {"num_codebooks": codec.num_codebooks, "codebook_size": codec.codebook_size}
    return frame_graph(run.config.dynamics, run.state["dynamics"], **shape, weights=weights)


def player_of(run: Run) -> FramePlayer:
    return FramePlayer(graph_of(run))


@pytest.fixture(scope="module", params=["flat", "depth"])
def run(request, tmp_path_factory) -> Run:
    return make_run(tmp_path_factory.mktemp("run"), layout=request.param)


@pytest.mark.parametrize(
    ("stride", "dtype", "layout"), [(1, "float32", "flat"), (4, "bfloat16", "flat"), (1, "float32", "depth")]
)
def test_the_graphs_equal_jax_over_hundreds_of_frames(tmp_path, stride, dtype, layout):
    """The ring, of 6 frames, goes round 50 times."""
    run = make_run(tmp_path, stride, dtype, layout=layout)
    decoder = decoder_graph(run.codec, read_codec_files(run.workdir.codec)[1])
    found = compare(run, graph_of(run), decoder, frames=301)
    assert found.logits < 1e-4
    assert found.sound < 1e-4
    assert found.codes == 0


@given(
    st.lists(st.tuples(st.integers(0, 8), st.floats(0, 3)), min_size=1, max_size=30),
    st.integers(0, 100_000),
)
@settings(max_examples=6)
def test_strength_acts_as_in_jax_wherever_the_stream_stands(run, actions, start):
    player = player_of(run)
    player.position = start
    step = jitted_step(run)
    model = run.models.dynamics(run.state["dynamics"])
    state = model.init_state(1)._replace(position=jnp.int32(start))
    for action, strength in actions:
        codes, logits = player.play(action, strength=strength)
        state, expected = step(state, jnp.array([action]), jnp.float32([strength]), jnp.array(codes))
        np.testing.assert_allclose(logits, expected, atol=1e-4)


_steps: dict[str, object] = {}


def jitted_step(run: Run):
    """A frame in JAX with the codes given: the new state, and its logits [Q, K]."""

    def step(state, action, strength, codes):
        model = run.models.dynamics(run.state["dynamics"])
        found = []

        def choose(logits, codebook):
            found.append(logits[0])
            return codes[codebook : codebook + 1]

        state, _ = model.play(model.layers(), state, model.action_embedding(action, strength), choose)
        return state, jnp.stack(found)

    return _steps.setdefault(model_digest(run.state["dynamics"]), jax.jit(step))


def test_without_noise_the_likeliest_code_is_played_and_what_is_given_is_taken(run, rng):
    free, told = player_of(run), player_of(run)
    for _ in range(20):
        action = int(rng.integers(0, 4))
        codes, logits = free.play(action)
        np.testing.assert_array_equal(codes, logits.argmax(-1))
        again, same = told.play(action, given=codes, noise=rng.normal(size=(CODEBOOKS, SIZE)).astype(np.float32))
        np.testing.assert_array_equal(again, codes)
        np.testing.assert_allclose(same, logits, atol=1e-5)


@pytest.mark.parametrize("top_k", [1, 3, 0])
def test_noise_draws_from_the_likeliest_only(run, rng, top_k):
    player = player_of(run)
    for _ in range(30):
        noise = rng.gumbel(0, 50, (CODEBOOKS, SIZE)).astype(np.float32)  # far above any logit
        codes, logits = player.play(0, noise=noise, top_k=top_k)
        ranks = (logits > np.take_along_axis(logits, codes[:, None], axis=1)).sum(axis=1)
        assert ranks.max() < (top_k or SIZE)
        if not top_k:
            np.testing.assert_array_equal(codes, (logits + noise).argmax(axis=1))


def test_sampling_follows_the_same_law_as_in_jax(run, rng):
    """The same frame many times: the frequencies of the first code, against those of `sample`."""
    temperature, draws = 0.8, 4000
    _, logits = player_of(run).play(0)
    first = jnp.broadcast_to(jnp.asarray(logits[0]), (draws, SIZE))
    gumbel = jax.random.gumbel(jax.random.key(0), first.shape)
    expected = np.bincount(sample(first, gumbel, jnp.float32(temperature), 0), minlength=SIZE) / draws
    noise = temperature * rng.gumbel(size=(draws, SIZE))
    found = np.bincount((logits[0] + noise).argmax(axis=1), minlength=SIZE) / draws
    np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(0.25 / draws))


def test_smaller_weights_are_smaller_and_still_near(run):
    """Over the first frame, before codes that differ make the rest incomparable."""
    sizes, errors = {}, {}
    exact = player_of(run).play(1)[1]
    for weights in ("float32", "float16", "int8"):
        model = graph_of(run, weights)
        player = FramePlayer(model)
        sizes[weights] = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
        errors[weights] = np.abs(player.play(1, given=np.zeros(CODEBOOKS))[1][0] - exact[0]).max()
    assert sizes["int8"] < sizes["float16"] < sizes["float32"]
    assert errors["float32"] == 0
    assert 0 < errors["float16"] < errors["int8"] < 0.1 * np.abs(exact).max()


@pytest.fixture(scope="module")
def encodec(tmp_path_factory):
    codec = EncodecCodec(fold(published_weights(), "drawn"), 1.5)
    folder = tmp_path_factory.mktemp("encodec")
    codec.save(folder)
    return codec, decoder_graph(codec, read_codec_files(folder)[1])


@given(st.lists(st.integers(1, 9), max_size=4), st.integers(7, 12))
@settings(max_examples=5)
def test_encodec_decodes_in_any_chunks_as_jax_does(encodec, chunks, first):
    codec, model = encodec
    lengths = [first, *chunks]
    codes = np.random.default_rng(len(chunks)).integers(0, 1024, (40, 2))
    expected = codec.decode(codes[None])[0]
    player = SoundPlayer(model)
    ends = np.cumsum(lengths)
    parts = [player.decode(codes[end - length : end]) for end, length in zip(ends, lengths, strict=True)]
    np.testing.assert_allclose(np.concatenate(parts), expected[: 320 * ends[-1]], atol=1e-4)


@pytest.mark.parametrize("design", [FittedCodec, MusicCodec])
def test_fitted_codecs_decode_in_any_chunks_as_jax_does(design, tmp_path, rng):
    clips = 0.3 * rng.normal(size=(4, 24 * 320)).astype(np.float32)
    codec = fit_codec(clips, CodecConfig(codebook_size=SIZE, num_codebooks=CODEBOOKS, steps=2), design=design)
    codec.save(tmp_path)
    player = SoundPlayer(decoder_graph(codec, read_codec_files(tmp_path)[1]))
    codes = rng.integers(0, SIZE, (20, CODEBOOKS))
    parts = [player.decode(part) for part in np.split(codes, [1, 8, 9])]
    np.testing.assert_allclose(np.concatenate(parts), codec.decode(codes[None])[0], atol=1e-5)


def test_a_run_of_encodec_exports_whole(encodec, tmp_path):
    run = make_run(tmp_path / "run", stride=4, codec=encodec[0])
    assert compare(run, graph_of(run), encodec[1], frames=12).logits < 1e-3


@pytest.fixture(scope="module")
def fake_runtime(tmp_path_factory) -> dict[str, bytes]:
    return {name: name.encode() for name in runtime.FILES}


def test_the_manifest_lists_every_binary_file_with_its_digest(run, fake_runtime, tmp_path, capsys):
    site = tmp_path / "a" / "site"
    export.export_site(run, site, "float32", make_prompt(run, ""), fake_runtime)
    manifest = json.loads((site / "model" / "manifest.json").read_text())
    for name, said in manifest["files"].items():
        content = (site / name).read_bytes()
        assert said == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    page = {path.name for path in site.iterdir() if path.is_file()}
    assert {"index.html", "main.js", "worklet.js", "engine-worker.js", "style.css"} <= page
    assert 'name="melodjinn-engine" content="browser"' in (site / "index.html").read_text()
    assert {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()} == page | {
        "model/manifest.json",
        *manifest["files"],
    }
    assert manifest["digests"]["codec"] == run.codec.digest
    evaluation = run.config.evaluation
    assert manifest["settings"] == {"temperature": evaluation.temperature, "strength": evaluation.strength}
    assert manifest["prompt"] == {"codes": [[0] * CODEBOOKS], "actions": [65535]}
    assert "logits differ by at most" in capsys.readouterr().out


def test_the_same_run_exports_to_the_same_bytes_over_an_older_site(run, fake_runtime, tmp_path):
    site = tmp_path / "site"
    contents = []
    for _ in range(2):
        export.export_site(run, site, "float32", make_prompt(run, ""), fake_runtime)
        contents.append({path: path.read_bytes() for path in sorted(site.rglob("*")) if path.is_file()})
        (site / "left.txt").write_text("of the older one")
    assert contents[0] == contents[1]


def test_a_folder_with_other_files_is_left_alone(run, fake_runtime, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        export.export_site(run, tmp_path, "float32", make_prompt(run, ""), fake_runtime)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_runtime_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=f"--runtime {tmp_path} does not hold"):
        runtime.runtime_files(str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm is not installed"):
        runtime.runtime_files("")
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(UserError, match=r"npm could not fetch .*no network"):
        runtime.runtime_files("")
    assert not list((tmp_path / ".cache" / "melodjinn").iterdir())


def test_a_work_directory_that_cannot_play_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        export, "command_line", lambda: ["--workdir", str(tmp_path), "--output", str(tmp_path / "site")]
    )
    assert export.main() == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_model_that_differs_is_not_written(run, fake_runtime, tmp_path, monkeypatch):
    other = dataclasses.replace(run, state={"dynamics": louder(run.state["dynamics"])})
    wrong = graph_of(other)
    monkeypatch.setattr(export, "frame_graph", lambda *_, **__: wrong)
    with pytest.raises(UserError, match="not the trained one"):
        export.export_site(run, tmp_path / "site", "float32", make_prompt(run, ""), fake_runtime)
    assert not (tmp_path / "site").exists()


def test_deep_models_reuse_one_copy_of_every_matrix():
    """The graph names each layer once for every codebook of a frame, but holds its matrices once."""
    config = DynamicsConfig(dim=16, num_heads=2, num_layers=2, window=4)
    run_config = tiny_config(dynamics=config)
    models = make_models(run_config, fitted_codec())
    params = models.init_dynamics(jax.random.key(0))
    model = frame_graph(config, params, num_codebooks=CODEBOOKS, codebook_size=SIZE)
    stored = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    assert stored < 1.1 * sum(leaf.size for leaf in jax.tree.leaves(params))
