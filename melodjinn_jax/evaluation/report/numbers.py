"""The rest of the report: hits against keys, every number with its meaning, settings, commands."""

import dataclasses
import math
import shlex
from collections.abc import Iterable
from typing import Any

from melodjinn_jax.config import Config
from melodjinn_jax.evaluation.report.files import RunFiles
from melodjinn_jax.evaluation.report.markup import NOTHING, Html, heading, join, number, table, tag
from melodjinn_jax.evaluation.report.plots import NEUTRAL
from melodjinn_jax.evaluation.suite import SUCCESS_THRESHOLD

EXPLANATIONS = {
    "generation_onset_f1": "F1 score of the hits heard when held-out clips are generated from their prompt and actions",
    "control_accuracy": "presses after which the drum of that key sounded, on time, and nothing else",
    "all_keys_accuracy": "the same for the worst key, each pressed many times; 0 if two keys play one drum",
    "noop_clean_fraction": "continuations under NOOP alone in which no drum sounds",
    "control_extra_onsets": "hits heard beyond the first, per press",
    "generation_logmel_correlation": "correlation of log-mel spectrograms, held-out clip against generation",
    "generation_logmel_distance": "difference of the same spectrograms, in decibels",
    "codec_logmel_distance": "the same of the codec alone, on the whole clips: no generation can be expected below it",
    "generation_level_db": "level of these generations, in decibels of full scale",
    "held_out_level_db": "level of the held-out clips",
    "noop_level_db": "level of continuations under NOOP alone",
    "generation_silence_share": "frames of these generations below -60 decibels",
    "held_out_silence_share": "the same of the held-out clips",
    "noop_silence_share": "the same of continuations under NOOP alone",
    "temperature": "of the sampling; 0 always takes the likeliest token",
    "onset_accuracy": "true hits that have the action of their drum",
    "noop_precision": "moments heard as NOOP that had no hit",
    "noop_recall": "moments without a hit that are NOOP",
    "action_nmi": "normalised mutual information of actions and hits",
    "num_actions": "codes (in a run on labels keys) in use on the held-out clips, NOOP's among them",
    "num_keys": "keys that the codes were merged into, beside NOOP",
    "cross_entropy_true_actions": "nats per token of held-out clips, given their own actions",
    "cross_entropy_shuffled_actions": "the same, their actions shuffled in time",
    "cross_entropy_no_actions": "the same, without actions",
    "generation_real_time_factor": "seconds of sound per second of computing: one stream, decoding included",
    "detector_onset_f1": "the onset detector itself, on true audio: no other F1 can be trusted beyond it",
    "codec_onset_f1": "the onset detector on true audio that went through the codec",
    "freeze_agreement": "agreement of the worst key between the last two looks before the freeze",
    "freeze_step": "step at which the latent action model stopped",
    "freeze_reason": "what made it stop",
    "step": "of the checkpoint that was evaluated",
    "phase": "of that checkpoint",
    "split": "held-out clips",
    "strength": "of the actions in what is played: 1 as they were trained",
    "success": f"the four measures at {SUCCESS_THRESHOLD:.0%} or more, greedy and sampled, and a key for every drum",
    "parameters.lam": "parameters of the latent action model",
    "parameters.dynamics": "parameters of the dynamics model",
}
_LISTED_APART = ("sampled", "confusion", "drum_of_key", "drums", "keys", "meaning")


def confusion(files: RunFiles) -> Html:
    """Which action stood for which hit, in counts."""
    counts = files.results.get("confusion")
    if not counts:
        return NOTHING
    # In the order of their drums, so that what is right lies on the diagonal.
    keys = [0, *sorted(range(1, len(counts[0])), key=lambda key: (_drum_order(files, key), key))]
    names = [(tag("b", str(key), class_=files.key_color(key)), tag("span", files.key_name(key))) for key in keys]
    head = ["", *(join([key, " ", name]) for key, name in names)]
    rows = []
    for truth, row in enumerate(counts):
        color = NEUTRAL if truth == 0 else files.drum_color(truth - 1)
        cells = [_count(row[key], sum(row), color) for key in keys]
        rows.append([files.drum_name(truth - 1) if truth else "nothing", *cells])
    lead = (
        "What happened on the held-out clips (rows) and the key that the model heard (columns). "
        "Each key was matched to the drum it stands for most often."
    )
    return join(
        [heading("Hits and keys", lead), table(head, rows, "confusion" if len(keys) <= 7 else "confusion many")]
    )


def _drum_order(files: RunFiles, key: int) -> int:
    drum = files.drum_of_key[key - 1] if key <= files.num_keys else None
    return len(files.drums) if drum is None else drum


def _count(count: int, total: int, color: str) -> Html:
    share = count / total if total else 0
    return tag("td", f"{count:,}" if count else "·", class_=color if count else "none", style=f"--share:{share:.3f}")


def numbers(files: RunFiles) -> Html:
    """Every number of eval.json with its meaning."""
    results, sampled = files.results, files.results.get("sampled", {})
    flat = {name: value for name, value in results.items() if name not in _LISTED_APART}
    for name, value in list(flat.items()):
        if isinstance(value, dict):
            flat.update({f"{name}.{inner}": item for inner, item in flat.pop(name).items()})
    names = sorted(flat | {name: None for name in sampled if name not in _LISTED_APART}, key=_table_order)
    rows = [
        [
            tag("code", name),
            number(flat[name]) if name in flat else "",
            number(sampled[name]) if name in sampled else "",
            EXPLANATIONS.get(name, ""),
        ]
        for name in names
    ]
    return join(
        [
            heading("All numbers", "What eval.json holds. Generation is greedy, and measured again with sampling."),
            _cross_entropies(results),
            _key_usage(files),
            table(["measure", "value", "sampled", "meaning"], rows, "numbers"),
            _key_table(files),
        ]
    )


def _table_order(name: str) -> int:
    known = list(EXPLANATIONS)
    return known.index(name) if name in known else len(known)


def _cross_entropies(results: dict[str, Any]) -> Html:
    kinds = {"true_actions": "true actions", "no_actions": "no actions", "shuffled_actions": "shuffled actions"}
    values = {label: results.get(f"cross_entropy_{kind}") for kind, label in kinds.items()}
    known = {label: value for label, value in values.items() if isinstance(value, float) and math.isfinite(value)}
    if len(known) < 2:
        return NOTHING
    longest = max(known.values()) or 1.0
    bars = []
    for label, value in known.items():
        bar = tag("i", style=f"--width:{max(value, 0) / longest:.3f}")
        bars.append(tag("div", tag("span", label), bar, tag("b", f"{value:.3f}")))
    note = "Surprise at the next token, in nats. The right actions should make it less, wrong ones more."
    caption = tag("figcaption", tag("h3", "Do actions tell the future?"), tag("p", note))
    return tag("figure", caption, *bars, class_="bars")


def _key_usage(files: RunFiles) -> Html:
    shares = [share["value"] for share in files.results.get("meaning", {}).get("key_share", [])]
    if not any(shares):
        return NOTHING
    bars = []
    for key, share in enumerate(shares):
        bar = tag("i", style=f"--width:{share / max(shares):.3f}")
        bars.append(tag("div", tag("span", files.key_title(key)), bar, tag("b", f"{share:.3f}")))
    note = "Share of the actions of the held-out clips. Nothing should happen most of the time."
    return tag("figure", tag("figcaption", tag("h3", "Keys in use"), tag("p", note)), *bars, class_="bars")


def _key_table(files: RunFiles) -> Html:
    greedy, sampled = files.results.get("keys", {}), files.results.get("sampled", {}).get("keys", {})
    rows = []
    for key in sorted(greedy, key=int):
        drum, other = greedy[key].get("drum"), sampled.get(key, {})
        rows.append(
            [
                f"key {key}",
                files.key_name(int(key)),
                "none" if drum is None else files.drum_name(drum),
                number(greedy[key].get("presses")),
                number(greedy[key].get("accuracy")),
                number(other.get("accuracy")),
            ]
        )
    head = ["", "heard as", "plays most", "presses", "greedy", "sampled"]
    return join([tag("h3", "Key by key"), table(head, rows, "keys")]) if rows else NOTHING


def settings(files: RunFiles) -> Html:
    """What differs from the defaults, and the versions that made the run."""
    default = dict(_flatten(Config()))
    changed = [
        [tag("code", name), str(value), str(default[name])]
        for name, value in _flatten(files.config)
        if value != default[name] and name != "name"
    ]
    versions = files.checkpoint.get("versions", {})
    made_by = ", ".join(f"{name} {version}" for name, version in versions.items())
    return join(
        [
            heading("Settings", "What differs from the defaults." if changed else "All settings are the defaults."),
            table(["setting", "this run", "default"], changed, "settings") if changed else NOTHING,
            tag("p", f"Made with {made_by}.", class_="hint") if made_by else NOTHING,
        ]
    )


def _flatten(config: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _flatten(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def commands(files: RunFiles) -> Html:
    """What to type next."""
    workdir = shlex.quote(files.path)
    presses = " ".join(f"{key} 0x24" for key in range(1, min(files.num_keys, 4) + 1)) or "0x60"
    lines = {
        "Press keys, write a file (0x8 is eight times NOOP)":
            f'python -m melodjinn_jax.generate --workdir {workdir} --actions "0x8 {presses}" --out clip.wav',
        "Extract the actions of a recording and play them":
            f"python -m melodjinn_jax.generate --workdir {workdir} --actions-from recording.wav --out clip.wav",
        "Measure again, on other clips":
            f"python -m melodjinn_jax.evaluate --workdir {workdir} --evaluation.split validation",
    }  # fmt: skip
    if files.config.data.actions:  # no LAM to extract them with
        del lines["Extract the actions of a recording and play them"]
    blocks = [tag("div", tag("p", what), tag("pre", tag("code", line))) for what, line in lines.items()]
    return join([heading("Play on", "From the folder in which the run was started."), *blocks])
