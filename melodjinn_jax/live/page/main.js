// The page: what the person does goes to the engine, what the engine says is shown.

import { Audio } from "./audio.js";
import { Moments, download } from "./moments.js";
import { Pads } from "./pads.js";
import { Timeline, clockText } from "./timeline.js";

const BACK_SECONDS = 2;
const GREETING_SECONDS = 0.35;
const GREETING_KEYS = 4;
const SETTINGS = ["temperature", "strength", "top_k"];

const element = (id) => document.getElementById(id);
const kind = document.querySelector('meta[name="melodjinn-engine"]').content;

const state = {
  welcome: null,
  audio: null,
  playing: false,
  bpm: null,
  take: 0,
  oldest: 0, // the frame that one can go back to at most
  report: { heard: 0, buffered: 0, underruns: 0, target: 0 },
  presses: [], // {key, at, frame}: waiting to be heard
  onSession: null, // called with the session that was asked for, or null if there is none to be had
  keeping: Promise.resolve(), // one session is asked for at a time
};

const worker = new Worker(new URL("engine-worker.js", import.meta.url), { type: "module" });
const timeline = new Timeline(element("timeline"), (frame) => goBack(frame));
const moments = new Moments(element("moments"), (bytes) => open(bytes));
const pads = new Pads(element("pads"), {
  onDown: press,
  onUp: (key) => send({ type: "release", key }),
  onMidi: (text) => (element("midi-status").textContent = text),
});

const seconds = (frames) => frames / timeline.framesPerSecond;

function send(message, transfer = []) {
  worker.postMessage(message, transfer);
}

function say(text) {
  element("status").textContent = text;
}

function complain(text) {
  element("problem").textContent = text;
  element("problem").hidden = !text;
}

// What the engine says

const LISTENERS = {
  progress: ({ share }) => (element("progress").value = share),
  welcome(message) {
    state.welcome = message;
    timeline.framesPerSecond = message.sample_rate / message.hop_length;
    timeline.numKeys = message.keys.length - 1;
    timeline.theme = null;
    pads.build(message.keys);
    element("progress").value = 1;
    element("progress").classList.add("done");
    element("model").textContent = message.name.replaceAll("_", " ");
    element("place").textContent = kind === "browser" ? "runs in this browser" : "streams from a server";
    element("model").hidden = element("place").hidden = false;
    for (const name of SETTINGS) element(name).max = Math.min(message.limits[name][1], message.codebook_size);
    LISTENERS.take(message);
    LISTENERS.settings(message.settings);
    if (state.wanted) begin();
  },
  take({ take, frame, begin: oldest }) {
    state.take = take;
    state.oldest = oldest;
    state.presses = [];
    timeline.clear(frame, oldest);
    pads.releaseAll();
    if (state.bpm) send({ type: "tempo", bpm: state.bpm }); // the engine forgot it with the frames that it counted in
  },
  frames({ take, frame, actions, peaks }) {
    if (take !== state.take) return;
    timeline.add(frame, actions, peaks);
    for (const press of state.presses) {
      const i = actions.indexOf(press.key);
      if (press.frame === null && i >= 0) press.frame = frame + i;
    }
  },
  settings(message) {
    for (const name of SETTINGS) {
      element(name).value = message[name];
      showSetting(name);
    }
  },
  tempo({ bpm }) {
    state.bpm = bpm;
    element("bpm").value = Math.round(bpm);
    element("beat").disabled = false;
  },
  scheduled({ key, frame }) {
    timeline.expect(key, frame);
  },
  health({ frame_ms: mean, real_time_factor: factor }) {
    element("frame-time").textContent = `${mean.toFixed(1)} ms`;
    element("speed").textContent = `${factor.toFixed(factor < 10 ? 1 : 0)}× real time`;
    element("speed").classList.toggle("bad", factor < 1);
  },
  error({ code, message }) {
    complain(message);
    if (code === "busy") state.onSession?.(null);
  },
  session: ({ bytes }) => state.onSession?.(bytes),
  wav: ({ bytes }) => download(bytes, `${state.welcome.name}.wav`),
  closed: ({ message }) => stopWith(message || "The server has gone: start it again, then load this page again."),
  failed: ({ message }) => stopWith(message),
};

worker.onmessage = ({ data }) => LISTENERS[data.type]?.(data);
worker.onerror = (event) => stopWith(`The engine could not be started: ${event.message ?? "load the page again."}`);

function stopWith(message) {
  complain(message);
  setPlaying(false);
  element("start").disabled = true;
  element("hint").textContent = "It cannot play as things stand.";
  for (const control of document.querySelectorAll("button, input")) control.disabled = true;
}

// What the audio thread says

function heard(report) {
  if (report.take !== state.take) return;
  state.report = report;
  timeline.hear(report.heard, state.playing);
  element("clock").textContent = clockText(seconds(report.heard), 1);
  element("buffer").textContent = `${Math.round(1000 * seconds(report.buffered))} ms`;
  element("gaps").textContent = report.underruns;
  element("gaps").classList.toggle("bad", report.underruns > 0);
  for (const press of state.presses.filter((one) => one.frame !== null && one.frame <= report.heard)) {
    const took = performance.now() - press.at + 1000 * state.audio.outputLatency;
    element("latency").textContent = `${Math.round(took)} ms`;
    state.presses.splice(state.presses.indexOf(press), 1);
  }
}

// What the person does

function press(key) {
  if (!state.audio) return start();
  const onBeat = element("beat").checked && !element("beat").disabled;
  send(onBeat ? { type: "press", key, on_beat: true } : { type: "press", key });
  if (!onBeat) {
    timeline.expect(key);
    state.presses.push({ key, at: performance.now(), frame: null });
  }
  if (!state.playing) setPlaying(true); // after the press, which so reaches the very next frame
  return undefined;
}

/** The first click: the loudspeaker opens, and as soon as the model is there it sounds. */
async function start() {
  if (state.audio || state.opening) return;
  state.opening = true;
  complain("");
  element("hint").textContent = state.welcome ? "" : "The model is on its way …";
  try {
    state.wanted = true;
    if (state.welcome) await begin();
  } finally {
    state.opening = false;
  }
}

async function begin() {
  const { sample_rate: sampleRate, hop_length: hop } = state.welcome;
  try {
    state.audio = await Audio.open({ sampleRate, hop, onReport: heard });
  } catch (error) {
    state.wanted = false;
    complain(error.message);
    element("hint").textContent = "";
    return;
  }
  const port = state.audio.enginePort();
  send({ type: "audio", port }, [port]);
  for (const control of document.querySelectorAll("button, input")) control.disabled = false;
  element("beat").disabled = !element("bpm").value;
  element("cover").classList.add("gone");
  element("toggle").focus({ preventScroll: true });
  greet();
  setPlaying(true);
}

/** Every key once, so that the first click sounds and shows what there is. */
function greet() {
  if (state.welcome.hold) return;
  const step = Math.round(GREETING_SECONDS * timeline.framesPerSecond);
  for (let key = 1; key <= Math.min(GREETING_KEYS, timeline.numKeys); key++) {
    send({ type: "press", key, at: timeline.made + Math.round(step * (key - 0.5)) });
    setTimeout(() => pads.glint(key), 1000 * GREETING_SECONDS * key);
  }
}

function setPlaying(playing) {
  state.playing = playing;
  element("toggle").setAttribute("aria-pressed", playing);
  element("toggle").setAttribute("aria-label", playing ? "Pause" : "Play");
  if (!state.audio) return;
  send({ type: playing ? "play" : "pause" });
  if (playing) state.audio.play();
  else state.audio.pause();
  say(playing ? "Playing" : "Paused");
}

/** Go on from a past frame; what is left is kept. */
function goBack(frame) {
  if (!state.audio || frame >= timeline.now()) return;
  const target = Math.max(state.oldest, Math.round(frame));
  say(`Gone back to ${clockText(seconds(target), 1)}`);
  keepThen(() => send({ type: "rewind", frame: target }));
}

function session(use) {
  state.keeping = state.keeping.then(async () => {
    const bytes = await new Promise((resolve) => {
      state.onSession = resolve;
      send({ type: "save" });
    });
    state.onSession = null;
    use(bytes);
  });
}

function keepThen(action) {
  const at = seconds(timeline.made);
  session((bytes) => {
    if (bytes) moments.keep(bytes, at);
    action();
  });
}

function open(bytes) {
  complain("");
  send({ type: "load", bytes: bytes.slice() });
  if (!state.playing) setPlaying(true);
}

async function openFile(file) {
  if (file && state.audio) open(new Uint8Array(await file.arrayBuffer()));
}

function showSetting(name) {
  const value = Number(element(name).value);
  element(`${name}-value`).textContent = name === "top_k" ? value || "all" : value.toFixed(2);
}

function tap() {
  send({ type: "tap", frame: Math.max(0, Math.round(timeline.now())) });
}

const CLICKS = {
  start,
  toggle: () => setPlaying(!state.playing),
  back: () => goBack(timeline.now() - BACK_SECONDS * timeline.framesPerSecond),
  branch: () => keepThen(() => say("Moment kept")),
  restart: () => {
    say("Begun again");
    keepThen(() => send({ type: "restart" }));
  },
  tap,
  follow: () => send({ type: "follow" }),
  save: () => session((bytes) => bytes && download(bytes, `${state.welcome.name}.melodjinn`)),
  open: () => element("file").click(),
  wav: () => send({ type: "wav" }),
  midi: () => pads.useMidi(),
};
for (const [id, action] of Object.entries(CLICKS)) element(id).addEventListener("click", action);
for (const name of SETTINGS) {
  element(name).addEventListener("input", () => {
    showSetting(name);
    send({ type: "settings", [name]: Number(element(name).value) });
  });
}
element("bpm").addEventListener(
  "change",
  ({ target }) => target.value && send({ type: "tempo", bpm: Number(target.value) }),
);
element("file").addEventListener("change", ({ target }) => openFile(target.files[0]));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  openFile(event.dataTransfer.files[0]);
});

const SHORTCUTS = { " ": "toggle", ArrowLeft: "back", m: "branch", t: "tap" };
addEventListener("keydown", (event) => {
  const onControl = event.target.matches?.("input") || (event.key === " " && event.target.matches?.("button, summary"));
  const id = SHORTCUTS[event.key];
  if (!id || onControl || event.repeat || event.ctrlKey || event.metaKey || event.altKey || !state.audio) return;
  event.preventDefault();
  element(id).click();
});

const base = new URL("./", location.href).href;
send({ type: "open", engine: kind, base, token: new URLSearchParams(location.search).get("token") });
