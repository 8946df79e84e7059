"""A real browser for tests: the page opened in it, and every sample that it sends to the loudspeaker."""

import base64
import functools
import http.server
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 60_000
HOP = 320

RECORDER = """
(() => {
  const recording = (window.recording = { blocks: [], reports: [] });
  const code = `registerProcessor("recorder", class extends AudioWorkletProcessor {
    process([input]) {
      if (input[0]) this.port.postMessage({ at: currentFrame, sound: input[0].slice() });
      return true;
    }
  })`;
  const module = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const connect = AudioNode.prototype.connect;
  AudioNode.prototype.connect = function (target, ...rest) {
    if (target instanceof AudioDestinationNode && this instanceof AudioWorkletNode) {
      this.port.addEventListener("message", ({ data }) => recording.reports.push(data));
      target.context.audioWorklet.addModule(module).then(() => {
        const recorder = new AudioWorkletNode(target.context, "recorder");
        recorder.port.onmessage = ({ data }) => recording.blocks.push(data);
        connect.call(this, recorder);
        connect.call(recorder, target);
      });
    }
    return connect.call(this, target, ...rest);
  };
})();
"""

READ_SOUND = """
([from, to]) => {
  const sound = new Float32Array(Math.max(0, to - from));
  for (const block of recording.blocks) {
    for (let i = 0; i < block.sound.length; i++) {
      const place = block.at + i - from;
      if (place >= 0 && place < sound.length) sound[place] = block.sound[i];
    }
  }
  let text = "";
  for (const byte of new Uint8Array(sound.buffer)) text += String.fromCharCode(byte);
  return btoa(text);
}
"""


@contextmanager
def launched() -> Iterator[Any]:
    """Headless Chromium; skips the test, with the reason, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a plain file server over a folder, without special headers."""
    handler = functools.partial(_QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class Page:
    """The page under test. Reports are what the audio thread says of itself (`worklet.js`)."""

    def __init__(self, browser: Any, address: str, *scripts: str):
        self.context = browser.new_context(accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        for script in (RECORDER, *scripts):
            self.page.add_init_script(script)
        self.address = address

    def open(self) -> "Page":
        self.page.goto(self.address)
        return self

    def close(self) -> None:
        self.context.close()

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression is true."""
        self.page.wait_for_function(condition)

    def report(self) -> dict[str, float]:
        report: dict[str, float] = self.page.evaluate("recording.reports.at(-1)")
        return report

    def wait_until_heard(self, frame: float) -> dict[str, float]:
        """Until the audio thread has played `frame`; the report that said so."""
        self.wait(f"recording.reports.at(-1)?.heard >= {frame}")
        return self.report()

    def start(self) -> dict[str, float]:
        """One click, then the greeting, in which every key sounds once."""
        self.page.click("#start")
        return self.wait_until_heard(150)

    def new_take(self, action: Callable[[], Any]) -> None:
        """Do what begins a new take, and wait for it."""
        take = self.report()["take"]
        action()
        self.wait(f"recording.reports.at(-1).take > {take}")

    def pause(self) -> dict[str, float]:
        """Pause, and wait until nothing is on its way any more."""
        self.page.click("#toggle")
        self.wait("recording.reports.slice(-60).length === 60")
        self.page.evaluate("recording.reports.length = 0")
        self.wait(
            "recording.reports.length > 60 && recording.reports.slice(-60).every((r) => "
            "r.heard === recording.reports.at(-1).heard && r.buffered === recording.reports.at(-1).buffered)"
        )
        return self.report()

    def sound(self, start: float, end: float) -> np.ndarray:
        """float32 samples that were sent to the loudspeaker, by the audio clock's count."""
        text = self.page.evaluate(READ_SOUND, [int(start), int(end)])
        return np.frombuffer(base64.b64decode(text), np.float32)

    def download(self, selector: str) -> bytes:
        """What a click downloads."""
        with self.page.expect_download() as found:
            self.page.click(selector)
        return Path(found.value.path()).read_bytes()

    @property
    def problem(self) -> str:
        """The sentence that the page shows as an alert."""
        self.page.wait_for_selector("#problem:not([hidden])")
        text: str = self.page.inner_text("#problem")
        return text
