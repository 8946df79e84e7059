// The worker that both engines live in, so that a busy page never starves the sound: audio goes straight to the audio
// thread, and the page gets what it draws.

import { BrowserEngine } from "./browser-engine.js";
import { ServerEngine } from "./server-engine.js";

const ENGINES = { browser: BrowserEngine, server: ServerEngine };
const PEAKS_PER_FRAME = 4;

let engine = null;
let audioPort = null;
let target = 0;
let hop = 0;
let early = []; // messages before the engine stands

function emit(message) {
  if (message.type === "welcome") hop = message.hop_length;
  if (message.type === "audio") {
    const { take, frame, actions, sound } = message;
    const peaks = peaksOf(sound, actions.length);
    self.postMessage({ type: "frames", take, frame, actions, peaks }, [peaks.buffer]);
    for (let i = 0; i < actions.length; i++) {
      const one = sound.slice(i * hop, (i + 1) * hop);
      audioPort?.postMessage({ take, frame: frame + i, sound: one }, [one.buffer]);
    }
    return;
  }
  if (message.type === "take" || message.type === "welcome") tellTake(message);
  self.postMessage(message);
}

let lastTake = null;
function tellTake({ take, frame }) {
  lastTake = { type: "take", take, frame };
  audioPort?.postMessage(lastTake);
}

/** Least and greatest sample of each part of each frame, one after the other. */
function peaksOf(sound, frames) {
  const parts = frames * PEAKS_PER_FRAME;
  const length = sound.length / parts;
  const peaks = new Float32Array(2 * parts);
  for (let part = 0; part < parts; part++) {
    let low = 0;
    let high = 0;
    for (let i = part * length; i < (part + 1) * length; i++) {
      low = Math.min(low, sound[i]);
      high = Math.max(high, sound[i]);
    }
    peaks[2 * part] = low;
    peaks[2 * part + 1] = high;
  }
  return peaks;
}

function heard(report) {
  if (report.target !== target) {
    target = report.target;
    engine?.receive({ type: "buffer", ahead: target });
  }
  engine?.receive({ type: "played", take: report.take, frame: Math.floor(report.heard) });
}

self.onmessage = async ({ data }) => {
  if (data.type === "audio") {
    audioPort = data.port;
    audioPort.onmessage = (event) => heard(event.data);
    if (lastTake) audioPort.postMessage(lastTake);
  } else if (data.type === "open") {
    try {
      engine = await ENGINES[data.engine].open(data, emit);
      early.splice(0).forEach((message) => engine.receive(message));
    } catch (error) {
      self.postMessage({ type: "failed", message: error.message });
    }
  } else if (engine) engine.receive(data);
  else early.push(data);
};

self.onunhandledrejection = ({ reason }) => {
  self.postMessage({ type: "failed", message: `The engine stopped: ${reason?.message ?? reason}` });
};
