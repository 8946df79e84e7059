"""From DATASETs of music to a run with its report, and from its labels to a run without waveform and LAM."""

import dataclasses
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import tiny_config
from music_world import write_music

from melodjinn_jax import evaluate, generate, label, train
from melodjinn_jax.codecs import load_codec
from melodjinn_jax.config import Config, DataConfig, DynamicsConfig, EvaluationConfig, LatentActionConfig, RuntimeConfig
from melodjinn_jax.data.audio import load_audio
from melodjinn_jax.data.records import RecordSource
from melodjinn_jax.errors import UserError
from melodjinn_jax.evaluation.measures import FLOOR_DB, level, logmel_correlation, logmel_distance
from melodjinn_jax.experiment import load_experiment, parse_train_arguments
from melodjinn_jax.training.checkpoint import CheckpointStore
from melodjinn_jax.training.manifest import read_manifest
from melodjinn_jax.training.mesh import open_mesh
from melodjinn_jax.training.run import initial_parameters, load_run, make_models, prepare_data
from melodjinn_jax.training.state import CodecShape, Models, abstract_state, count_parameters
from melodjinn_jax.training.workdir import WorkDir
from melodjinn_jax.validation import check_config

ROOT = Path(__file__).resolve().parent.parent
STRIDE = 2
TRACKS = {"train": {"a": 170, "b": 120, "c": 90}, "test": {"d": 150}}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A LAM run on a mixture, and a run on the labels that it made."""

    datasets: tuple[str, str]
    lam_run: Path
    labelled: Path


def music_config(datasets: tuple[str, ...], **data) -> Config:
    return tiny_config(
        data=DataConfig(datasets=datasets, **data),
        latent_actions=LatentActionConfig(
            dim=16,
            num_heads=2,
            latent_dim=4,
            window=5,
            features="spectra",
            hears="codec",
            action_stride=STRIDE,
            # Some keys come out of a LAM that has hardly been trained.
            kl_weight=0.0,
            max_codes=4,
            event_share=0.3,
            merge="none",
        ),
        # A run on labels has no LAM that could listen to practice.
        dynamics=DynamicsConfig(
            dim=16, num_heads=2, num_layers=2, window=8, practice_rate=0.1 * ("actions" not in data), practice_frames=8
        ),
        evaluation=EvaluationConfig(clips=3, frames=24),
        runtime=RuntimeConfig(log_every=1, save_every=3, compile_cache="", progress=False),
    )


def run_train(path: Path, config: Config, init_from: str = "") -> None:
    check_config(config)
    with WorkDir.create_or_open(path, config) as workdir:
        data, codec = prepare_data(config, workdir, lambda line: None)
        with jax.set_mesh(open_mesh(config)):
            assert train.train(config, workdir, data, codec, init_from) == 0


def command(monkeypatch, module, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    return module.main()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("music")
    datasets = (str(folder / "one"), str(folder / "two"))
    for seed, path in enumerate(datasets):
        write_music(Path(path), TRACKS, seed=10 * seed)
    run_train(folder / "lam", music_config(datasets, weights=(3.0, 1.0)))
    evaluate.evaluate_run(str(folder / "lam"), music_config(datasets).evaluation)
    with pytest.MonkeyPatch.context() as patch:
        for path in datasets:
            assert command(patch, label, "--workdir", str(folder / "lam"), "--dataset", path) == 0
        # What a run on labels must not need.
        decode = RecordSource._decode

        def no_waveform(self, name, data):
            assert name != "waveform"
            return decode(self, name, data)

        patch.setattr(RecordSource, "_decode", no_waveform)
        run_train(folder / "labelled", music_config(datasets, actions="auto"))
    evaluate.evaluate_run(str(folder / "labelled"), music_config(datasets).evaluation)
    return Trained(datasets, folder / "lam", folder / "labelled")


def newest(workdir: Path):
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()]
    return read_manifest(workdir / "checkpoints" / str(max(steps)))


@pytest.mark.parametrize("name", ["lam_run", "labelled"])
def test_a_run_ends_with_what_can_be_measured_and_a_page_that_plays_it(trained, name):
    workdir = getattr(trained, name)
    results = json.loads((workdir / "eval.json").read_text())
    assert (results["step"], results["phase"]) == (12, "frozen")
    assert results["freeze_reason"] == ("labelled" if name == "labelled" else "deadline")
    assert set(results["parameters"]) == {"dynamics"} | ({"lam"} if name == "lam_run" else set())
    assert results["num_keys"] > 0
    meaning = results["meaning"]
    assert len(meaning["key_share"]) == results["num_keys"] + 1
    assert sum(share["value"] for share in meaning["key_share"]) == pytest.approx(1, abs=1e-4)
    assert meaning["tracks"] == 1  # both DATASETs call theirs d
    for measure in ("leakage", "recovery"):
        assert (measure in meaning) == (name == "lam_run")
    for scores in (results, results["sampled"]):
        assert -1 <= scores["generation_logmel_correlation"] <= 1
        assert scores["generation_logmel_distance"] >= 0
        assert 0 <= scores["generation_silence_share"] <= 1
        assert FLOOR_DB <= scores["generation_level_db"] < 6
    assert 0 < results["cross_entropy_true_actions"] < 10
    assert results["generation_real_time_factor"] > 0
    watched = [row for row in map(json.loads, (workdir / "metrics.jsonl").open()) if "held_out" in row]
    assert [row["step"] for row in watched] == ([8, 9, 12] if name == "lam_run" else [3, 6, 9, 12])
    assert watched[-1]["held_out"]["true_actions"] < watched[0]["held_out"]["true_actions"]
    # The last of them is what the evaluation finds: the same clips, the same actions.
    for actions in ("true_actions", "no_actions"):
        assert watched[-1]["held_out"][actions] == pytest.approx(results[f"cross_entropy_{actions}"], rel=1e-4)
    page = (workdir / "report.html").read_text()
    sections = set(re.findall(r'<section id="(\w+)"', page))
    assert sections == {"listen", "clip", "training", "meaning", "numbers", "settings", "commands"}
    assert "drum" not in re.sub(r"(?s)<(style|script)>.*?</\1>", "", page)
    assert page.count("<audio") == 3 + results["num_keys"]


def test_a_labelled_run_has_the_action_space_of_its_labels_and_no_lam(trained):
    theirs, ours = newest(trained.lam_run), newest(trained.labelled)
    assert ours.metadata["action_space"] == theirs.metadata["action_space"]
    assert ours.metadata["phase"]["freeze_step"] == 0
    assert {leaf.path[0] for leaf in ours.leaves}.isdisjoint({"lam", "codebook", "key_of_code", "feature_scale"})
    run = load_run(str(trained.labelled))
    assert not run.has_lam
    assert run.action_space == load_run(str(trained.lam_run)).action_space


def test_a_run_with_a_lam_practises_and_one_on_labels_learns_without(trained):
    rows = [
        [row for row in map(json.loads, (path / "metrics.jsonl").open()) if "cross_entropy" in row]
        for path in (trained.lam_run, trained.labelled)
    ]
    assert all(0 <= row["practice_recovery"] <= 1 for row in rows[0])
    assert not any("practice_recovery" in row for row in rows[1])
    losses = [row["cross_entropy"] for row in rows[1]]
    assert len(losses) == 12
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_generate_plays_keys_and_refuses_to_extract_without_a_lam(trained, tmp_path, monkeypatch, capsys):
    out, again = tmp_path / "clip.wav", tmp_path / "again.wav"
    run = ["--workdir", str(trained.labelled)]
    assert command(monkeypatch, generate, *run, "--actions", "0x8", "--out", str(out)) == 0
    assert len(load_audio(out)) == (8 + 1) * STRIDE * 320
    assert command(monkeypatch, generate, *run, "--prompt", str(out), "--actions", "0x4", "--out", str(again)) == 0
    assert len(load_audio(again)) == (9 + 4) * STRIDE * 320
    capsys.readouterr()
    assert command(monkeypatch, generate, *run, "--actions-from", str(out), "--out", str(again)) == 2
    said = capsys.readouterr().err
    assert "--actions-from needs a LAM" in said
    assert said.count("\n") == 1


def test_init_from_brings_a_labelled_run_the_dynamics_model_only(trained, tmp_path):
    config = music_config(trained.datasets, actions="auto")
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, steps=1))
    source = {leaf.name: leaf.sha256 for leaf in newest(trained.lam_run).leaves}
    optimizer = dataclasses.replace(config.dynamics_optimizer, learning_rate=1e-30, weight_decay=0.0)
    run_train(tmp_path / "a", dataclasses.replace(config, dynamics_optimizer=optimizer), str(trained.lam_run))
    taken = {leaf.name: leaf.sha256 for leaf in newest(tmp_path / "a").leaves}
    kernels = [name for name in taken if name.startswith("dynamics/") and name.endswith("kernel")]
    assert kernels
    assert all(taken[name] == source[name] for name in kernels)
    with pytest.raises(UserError, match=r"has no LAM; take .*:dynamics"):
        run_train(tmp_path / "b", config, f"{trained.lam_run}:lam")


def test_a_run_that_practises_may_begin_with_one_that_did_not(trained):
    config = music_config(trained.datasets)
    with CheckpointStore(WorkDir(trained.labelled).checkpoints) as store:
        there = store.read_arrays(store.latest().step, "dynamics")["dynamics"]
    codec = load_codec(WorkDir(trained.labelled).codec)
    given, is_frozen = initial_parameters(f"{trained.labelled}:dynamics", make_models(config, codec), codec, None)
    assert not is_frozen
    assert not given["dynamics"].pop("embed_press")["embedding"].any()
    jax.tree.map(np.testing.assert_array_equal, given["dynamics"], there)


def test_what_was_practised_stays_with_the_keys_that_it_was_practised_for(trained):
    config = music_config(trained.datasets)
    codec = load_codec(WorkDir(trained.lam_run).codec)
    models = make_models(config, codec)
    whole, is_frozen = initial_parameters(str(trained.lam_run), models, codec, None)
    assert is_frozen
    assert whole["dynamics"]["embed_press"]["embedding"].any()
    alone, _ = initial_parameters(f"{trained.lam_run}:dynamics", models, codec, None)
    assert not alone["dynamics"]["embed_press"]["embedding"].any()


def test_a_run_that_practises_resumes_bit_for_bit(trained, tmp_path):
    shutil.copytree(trained.lam_run, tmp_path / "run")
    last = max((tmp_path / "run" / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
    shutil.rmtree(last)
    run_train(tmp_path / "run", music_config(trained.datasets, weights=(3.0, 1.0)))
    ours, theirs = newest(tmp_path / "run"), newest(trained.lam_run)
    assert "dynamics/embed_press/embedding" in {leaf.name for leaf in theirs.leaves}
    assert {leaf.name: leaf.sha256 for leaf in ours.leaves} == {leaf.name: leaf.sha256 for leaf in theirs.leaves}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"data": {"weights": (1.0,)}}, "data.weights is (1.0,): give one weight for each of the 2"),
        ({"data": {"weights": (1.0, -1.0)}}, "every weight must be positive"),
        ({"data": {"path": "x"}}, "data.path is x"),
        ({"data": {"datasets": (), "actions": "auto"}}, "data.actions is auto: it needs data.datasets"),
        ({"evaluation": {"frames": 25}}, "evaluation.frames is 25: it must be a multiple"),
        ({"evaluation": {"takes": 0}}, "evaluation.takes is 0: it must be at least 1"),
        ({"evaluation": {"strength": -1.0}}, "evaluation.strength is -1.0: it must be at least 0"),
        ({"latent_actions": {"event_share": 1.0}}, "latent_actions.event_share is 1.0: it must lie in [0, 1)"),
        ({"latent_actions": {"codebook_init": "random", "event_share": 0.1}}, "needs latent_actions.bottleneck ema_vq"),
        ({"data": {"datasets": ()}}, "latent_actions.hears is codec: the drum world's LAM hears its clips"),
        ({"evaluation": {"frames": 10}}, "evaluation.frames is 10: it must hold"),
        ({"evaluation": {"frames": 52}}, "evaluation.frames is 52: the records of data.datasets have only 50"),
        ({"evaluation": {"split": "validation"}}, "has no validation split to evaluate on"),
        ({"training": {"crop_frames": 52}}, "training.crop_frames is 52"),
        ({"data": {"actions": "auto"}}, "dynamics.practice_rate is 0.1: it needs a LAM that listens"),
        ({"data": {"actions": "123"}, "dynamics": {"practice_rate": 0.0}}, "has no labels 123"),
        (
            {
                "data": {"actions": "auto"},
                "latent_actions": {"max_codes": 9},
                "dynamics": {"practice_rate": 0.0},
            },
            "latent_actions.max_codes is 9, but 4",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence_before_training(trained, tmp_path, changes, complaint):
    config = music_config(trained.datasets)
    for name, fields in changes.items():
        config = dataclasses.replace(config, **{name: dataclasses.replace(getattr(config, name), **fields)})
    with pytest.raises(UserError, match=re.escape(complaint)) as refusal:
        run_train(tmp_path / "run", config)
    assert "\n" not in str(refusal.value)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


VARIANTS = runpy.run_path(str(ROOT / "benchmarks" / "music_actions.py"))["VARIANTS"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_that_the_benchmark_compares_can_work(variant):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in VARIANTS[variant].items()]
    config = ["--config", str(ROOT / "experiments" / "electronic_small.py"), "--workdir", "w"]
    assert parse_train_arguments([*config, *flags]).settings.name == "electronic_small"


def test_distances_of_sound(rng):
    sound = rng.normal(0, 0.1, (2, 3200)).astype(np.float32)
    assert logmel_distance(sound, sound) == 0
    assert logmel_correlation(sound, sound) == pytest.approx(1)
    assert logmel_correlation(np.zeros_like(sound), sound) == 0
    assert logmel_distance(10 * sound, sound) == pytest.approx(20, abs=0.2)
    assert level(np.zeros((1, 640)), 320) == (FLOOR_DB, 1.0)
    half = np.concatenate([np.ones((1, 320)), np.zeros((1, 320))], axis=1)
    assert level(half, 320) == pytest.approx((-3.01, 0.5), abs=0.01)


EXPERIMENTS = {
    "toy_drums": (182_380, CodecShape(24000, 320, 2, 256)),
    "one_shots": (215_404, CodecShape(24000, 320, 2, 512)),
    "toy_drums_classical": (181_868, CodecShape(24000, 320, 2, 256)),
    "toy_drums_dynamics_gradient": (182_380, CodecShape(24000, 320, 2, 256)),
    "electronic_small": (383_740, CodecShape(24000, 320, 4, 256)),
    "maestro_200m": (203_486_336, CodecShape(24000, 320, 4, 1024)),
    "techno_200m": (203_486_336, CodecShape(24000, 320, 4, 1024)),
}


def test_every_experiment_is_known_here():
    assert {file.stem for file in (ROOT / "experiments").glob("*.py")} == set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_can_work_and_has_the_size_that_it_says(name):
    config = load_experiment(str(ROOT / "experiments" / f"{name}.py"))
    check_config(config)
    assert config.name == name
    size, codec = EXPERIMENTS[name]
    parameters = abstract_state(Models(config, codec), ["lam", "dynamics"])
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(parameters))
    assert count_parameters(parameters["dynamics"]) == size
