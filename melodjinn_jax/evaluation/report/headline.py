"""The head of the report: which run this is, whether it did what it should, and the numbers that say so."""

import math
from typing import Any

from melodjinn_jax.evaluation.report.files import RunFiles
from melodjinn_jax.evaluation.report.markup import NOTHING, Html, join, percent, tag
from melodjinn_jax.evaluation.suite import SUCCESS_KEYS, SUCCESS_THRESHOLD

_TIMES = "\N{MULTIPLICATION SIGN}"
TILE_LABELS = {
    "generation_onset_f1": ("Follows the actions", "Hits of unseen clips, replayed from their actions alone"),
    "control_accuracy": ("Does what is pressed", "Presses that sound the right drum, on time, and nothing else"),
    "all_keys_accuracy": ("Even the worst key", "The same for the worst key, over many presses of each"),
    "noop_clean_fraction": ("Silent when left alone", "Continuations in which nothing is pressed and nothing sounds"),
}


def header(files: RunFiles) -> Html:
    """Which run this is, and whether it did what it should."""
    results, config = files.results, files.config
    is_good, verdict = judge(files)
    facts = [f"{results.get('step', 0):,} steps, seed {config.seed}"]
    if results.get("freeze_step") is not None:
        facts.append(f"actions frozen at step {results['freeze_step']:,} ({results.get('freeze_reason')})")
    elif "phase" in results:
        facts.append(f"actions not frozen (phase {results['phase']})")
    if "parameters" in results:
        sizes = [f"{name} {count / 1000:,.0f}k" for name, count in results["parameters"].items()]
        facts.append("parameters: " + ", ".join(sizes))
    evaluation = config.evaluation
    facts.append(f"measured on {evaluation.clips} clips of the {results.get('split', evaluation.split)} split")
    return join(
        [
            tag("p", "Melodjinn run report", class_="eyebrow"),
            tag("h1", config.name),
            tag("p", verdict, class_=f"verdict {'good' if is_good else 'weak'}"),
            tag("ul", *(tag("li", fact) for fact in facts), class_="facts"),
        ]
    )


def judge(files: RunFiles) -> tuple[bool, str]:
    """Whether the run succeeded, and why in words."""
    results, drums = files.results, len(files.drums)
    if files.is_music:
        return judge_music(results)
    if results.get("success"):
        return True, f"It works: {drums} drums were found, and each has a key that plays it."
    short = []
    if results.get("num_keys") != drums:
        short.append(f"{results.get('num_keys', 0)} keys for {drums} drums")
    for name in SUCCESS_KEYS:
        for kind, scores in (("greedy", results), ("sampled", results.get("sampled", {}))):
            if name in scores and not scores[name] >= SUCCESS_THRESHOLD:
                short.append(f"“{TILE_LABELS[name][0].lower()}” {percent(scores[name])} ({kind})")
    reason = "; ".join(short) or "the actions do not yet agree with the hits on the frame grid"
    return False, f"Not there yet: {reason}. The bar is {SUCCESS_THRESHOLD:.0%}."


def judge_music(results: dict[str, Any]) -> tuple[bool, str]:
    """Whether the actions tell the dynamics model something true, which is what can be said without any truth."""
    if not results.get("num_keys"):
        return False, "No key was found: nothing that happens in this music was told from nothing."
    gains = [results.get("meaning", {}).get(f"cross_entropy_gain_over_{kind}", {}) for kind in ("none", "shuffled")]
    if all((gain.get("low") or 0.0) > 0 for gain in gains):
        gain, none = gains[0], results.get("cross_entropy_no_actions", math.nan)
        taken = f"{gain['value']:.3f} [{gain['low']:.3f}, {gain['high']:.3f}] nats of {none:.3f}"
        return True, f"The actions tell the future: they take {taken} from each token."
    return False, "It is not certain that the actions tell the future: unseen music may be as surprising without them."


def tiles(files: RunFiles) -> Html:
    """The headline numbers."""
    results = files.results
    sampled = results.get("sampled", {})
    shown = [_share_tile(name, results[name], sampled.get(name)) for name in SUCCESS_KEYS if name in results]
    if files.is_music:
        shown += _music_tiles(results)
    elif "num_keys" in results:
        keys, drums = results["num_keys"], len(files.drums)
        note = f"NOOP beside them; {results['num_actions']} codes in use" if "num_actions" in results else ""
        meaning = "One for each drum, from sound alone"
        shown.append(_tile("Keys found", f"{keys} / {drums}", meaning, note, keys == drums))
    if "generation_real_time_factor" in results:
        factor = results["generation_real_time_factor"]
        text = (f"{factor:,.0f}" if factor >= 10 else f"{factor:.1f}") + _TIMES
        meaning = "Seconds of sound per second of computing, one stream"
        shown.append(_tile("Speed", text, meaning, f"real time is 1{_TIMES}", factor >= 1))
    return join(shown)


def _music_tiles(results: dict[str, Any]) -> list[Html]:
    shown = [
        ("num_keys", "Keys found", "{:,}", "Beside NOOP, from sound alone"),
        ("cross_entropy_true_actions", "Surprise", "{:.3f}", "Nats per token of unseen music, given its actions"),
        ("generation_logmel_correlation", "Likeness", "{:.3f}", "Correlation of spectrograms, replayed from actions"),
        ("generation_silence_share", "Silence", "{:.1%}", "Of what was generated from unseen prompts and actions"),
    ]
    return [
        _tile(title, form.format(results[name]), meaning, "", True)
        for name, title, form, meaning in shown
        if name in results
    ]


def _share_tile(name: str, greedy: float, sampled: float | None) -> Html:
    title, meaning = TILE_LABELS[name]
    values = [greedy] if sampled is None else [greedy, sampled]
    is_good = all(value >= SUCCESS_THRESHOLD for value in values)
    note = "" if sampled is None else f"sampled {percent(sampled)}"
    bars = [tag("i", style=f"width:{100 * min(max(value, 0), 1):.1f}%") for value in values if math.isfinite(value)]
    meter = tag("div", *bars, class_="meter", aria_hidden="true")
    return _tile(title, percent(greedy), meaning, note, is_good, meter)


def _tile(title: str, value: str, meaning: str, note: str, is_good: bool, meter: Html = NOTHING) -> Html:
    warning = NOTHING if is_good else tag("span", ", below the bar", class_="warning")
    return tag(
        "div",
        tag("h2", title),
        tag("p", value, class_="value"),
        tag("p", note, warning, class_="note"),
        meter,
        tag("p", meaning, class_="meaning"),
        class_=f"tile {'good' if is_good else 'weak'}",
    )
