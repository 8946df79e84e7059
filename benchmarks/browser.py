"""How the page does in a real headless browser: time to sound, press to sound, speed, and minutes without a gap.

    python benchmarks/browser.py --workdir runs/toy_drums --minutes 10             # the exported site
    python benchmarks/browser.py --workdir runs/toy_drums --minutes 10 --server    # the page of the play command

Everything is measured from outside, on the samples that the page sends to the loudspeaker and on the audio clock:
time to sound from the click to the first sample above the threshold; press to sound from the key's event in the page to
the hit's first sample. Both end where the browser says that the sample leaves the loudspeaker, and include whatever the
machine was busy with, so the load is printed. The speed is the page's own count of the time that a frame takes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT / "tests")
from browser import Page, launched, served  # noqa: E402

THRESHOLD = 0.03
RATE = 24000
QUIET_SECONDS = 0.4
LONGEST_LATENCY = 1.0

FORGET = (
    "presses.length = 0; for (const list of [recording.blocks, recording.reports]) list.splice(0, list.length - 99)"
)

HEALTH = "[...document.querySelectorAll('.health div')].map((item) => [...item.children].map((c) => c.textContent))"

CLOCK = """
(() => {
  const presses = (window.presses = []);
  const Original = window.AudioContext;
  window.AudioContext = class extends Original {
    constructor(...options) {
      super(...options);
      window.audio = this;
    }
  };
  addEventListener("pointerdown", () => (window.clicked ??= performance.now()), true);
  addEventListener("keydown", (event) => presses.push({ key: event.key, at: performance.now() }), true);
  // The moment of the audio clock that leaves the loudspeaker, on the page's clock.
  window.clock = () => {
    const { contextTime, performanceTime } = audio.getOutputTimestamp();
    return { contextTime, performanceTime };
  };
})();
"""


@contextmanager
def exported(workdir: str) -> Iterator[str]:
    """The address of the exported site."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "melodjinn_jax.export", "--workdir", workdir, "--output", f"{folder}/site"]
        subprocess.run(command, check=True)
        with served(Path(folder)) as address:
            yield f"{address}/site/"


@contextmanager
def played(workdir: str) -> Iterator[str]:
    """The address of a server."""
    command = [sys.executable, "-m", "melodjinn_jax.play", "--workdir", workdir, "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[2]
        process.terminate()


def time_to_sound(page: Page) -> float:
    """Seconds from the click to the first sample that is heard; the page has been there for a while."""
    page.start()
    report = page.report()
    loud = np.flatnonzero(np.abs(page.sound(0, report["at"])) > THRESHOLD)
    clock = page.page.evaluate("clock()")
    clicked = page.page.evaluate("clicked")
    heard_at = clock["performanceTime"] + 1000 * (loud[0] / RATE - clock["contextTime"])
    return (heard_at - clicked) / 1000


def press_to_sound(page: Page, key: str) -> float | None:
    """Seconds from a key's event to its first sample at the loudspeaker; None if nothing came."""
    page.page.evaluate(FORGET)
    page.page.keyboard.press(key)
    time.sleep(LONGEST_LATENCY)
    clock = page.page.evaluate("clock()")
    pressed = page.page.evaluate("presses[0].at")
    at = RATE * (clock["contextTime"] + (pressed - clock["performanceTime"]) / 1000)
    loud = np.flatnonzero(np.abs(page.sound(at, at + LONGEST_LATENCY * RATE)) > THRESHOLD)
    return loud[0] / RATE if len(loud) else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default=str(ROOT / "runs" / "toy_drums"))
    parser.add_argument("--server", action="store_true", help="measure the page of the play command")
    parser.add_argument("--presses", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=10, help="of play, the presses among them")
    arguments = parser.parse_args()
    source = played if arguments.server else exported
    with source(arguments.workdir) as address, launched() as browser:
        page = Page(browser, address, CLOCK).open()
        page.wait("document.getElementById('progress').classList.contains('done')")
        first = time_to_sound(page)
        print(f"| time to sound | {first:.2f} s | load {os.getloadavg()[0]:.1f} |", flush=True)
        began = time.monotonic()
        latencies, missed = [], 0
        rng = np.random.default_rng(0)
        while (elapsed := time.monotonic() - began) < 60 * arguments.minutes or len(latencies) < arguments.presses:
            if len(latencies) < arguments.presses:
                found = press_to_sound(page, str(rng.integers(1, 4)))
                missed += found is None
                latencies += [] if found is None else [found]
                time.sleep(QUIET_SECONDS * rng.random())
            else:
                page.page.evaluate(FORGET)
                page.page.keyboard.press(str(rng.integers(1, 4)))
                time.sleep(2 * rng.random())
        report = page.report()
        middle, late = 1000 * np.quantile(latencies, [0.5, 0.95])
        print(f"| press to sound | p50 {middle:.0f} ms, p95 {late:.0f} ms | {len(latencies)} heard, {missed} not |")
        for name, value in page.page.evaluate(HEALTH):
            print(f"| {name} | {value} |")
        print(f"| played | {elapsed / 60:.1f} min, {report['underruns']} gaps | load {os.getloadavg()[0]:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
