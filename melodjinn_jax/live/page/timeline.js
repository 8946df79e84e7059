// The moving picture: sound and keys, the moment that is heard at a fixed place, what was made ahead to its right.

const SECONDS_SHOWN = 9;
const NOW_AT = 0.8; // of the width
const PEAKS_PER_FRAME = 4;
const FRAMES_KEPT = 4096; // a power of two, more than is ever shown
const GLOW_FRAMES = 24; // that the sound after a key bears its colour
const FULL_SCALE = 0.6; // of a sample, at the card's edge
const LANE = 22; // pixels
const CLOCKS = 20; // pixels above the sound
const LEAST_BAR = 0.75; // pixels

export const keyHue = (key) => (28 + (key - 1) * 137.5) % 360;

export class Timeline {
  constructor(canvas, onSeek) {
    Object.assign(this, { canvas, context: canvas.getContext("2d") });
    this.numKeys = 0;
    this.framesPerSecond = 75;
    this.actions = new Uint16Array(FRAMES_KEPT);
    this.peaks = new Float32Array(FRAMES_KEPT * PEAKS_PER_FRAME * 2);
    this.clear(0, 0);
    this.heardAt = 0;
    this.running = false;
    canvas.addEventListener("click", (event) => onSeek(this.frameAt(event.offsetX)));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (this.theme = null));
    new ResizeObserver(() => this.resize()).observe(canvas);
    const draw = () => {
      this.draw();
      requestAnimationFrame(draw);
    };
    requestAnimationFrame(draw);
  }

  /** A new take: what was made after `frame` is gone. */
  clear(frame, begin) {
    this.first = this.made > frame ? Math.max(this.first, begin, frame - FRAMES_KEPT) : frame;
    this.made = this.heard = frame;
    this.pending = []; // {key, frame}: pressed, not made yet
  }

  add(frame, actions, peaks) {
    actions.forEach((action, i) => {
      const place = (frame + i) % FRAMES_KEPT;
      this.actions[place] = action;
      const length = PEAKS_PER_FRAME * 2;
      this.peaks.set(peaks.subarray(i * length, (i + 1) * length), place * length);
      const met = this.pending.findIndex((one) => one.key === action);
      if (met >= 0) this.pending.splice(met, 1);
    });
    this.made = frame + actions.length;
    this.first = Math.max(this.first, this.made - FRAMES_KEPT + 1);
    this.pending = this.pending.filter((one) => one.frame > this.made - this.framesPerSecond);
  }

  /** Show a press at once, where it will sound. */
  expect(key, frame = this.made) {
    this.pending.push({ key, frame: Math.max(frame, this.made) });
  }

  hear(frame, running) {
    this.heard = frame;
    this.heardAt = performance.now();
    this.running = running;
  }

  /** The frame heard at this very moment: reports come less often than pictures. */
  now() {
    const since = this.running ? (performance.now() - this.heardAt) / 1000 : 0;
    return Math.min(this.made, this.heard + Math.min(since, 0.1) * this.framesPerSecond);
  }

  get frameWidth() {
    return this.width / (SECONDS_SHOWN * this.framesPerSecond);
  }

  frameAt(x) {
    return Math.floor(this.now() + (x - this.width * NOW_AT) / this.frameWidth);
  }

  resize() {
    const ratio = devicePixelRatio || 1;
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
  }

  colors() {
    if (this.theme) return this.theme;
    const style = getComputedStyle(document.documentElement);
    const value = (name) => style.getPropertyValue(name).trim();
    const key = (k) => `oklch(${value("--key-light")} ${value("--key-chroma")} ${keyHue(k)})`;
    this.theme = {
      wave: value("--wave"),
      line: value("--line"),
      soft: value("--soft"),
      ink: value("--ink"),
      accent: value("--accent"),
      key: Array.from({ length: this.numKeys + 1 }, (_, k) => (k ? key(k) : value("--wave"))),
    };
    return this.theme;
  }

  draw() {
    if (!this.width || document.hidden) return;
    const { context: c, width, height } = this;
    const now = this.now();
    const nowX = width * NOW_AT;
    const x = (frame) => nowX + (frame - now) * this.frameWidth;
    const lanes = this.numKeys * Math.min(LANE, (height * 0.4) / Math.max(1, this.numKeys));
    const wave = { middle: (height - lanes + CLOCKS) / 2, tallest: (height - lanes - CLOCKS) / 2 - 4 };
    c.clearRect(0, 0, width, height);
    this.drawGrid(x, now, height, lanes);
    this.drawWave(x, wave);
    this.drawKeys(x, height - lanes, lanes);
    this.drawNow(nowX, height);
  }

  drawGrid(x, now, height, lanes) {
    const { context: c, width, framesPerSecond: rate } = this;
    const theme = this.colors();
    c.fillStyle = theme.soft;
    c.strokeStyle = theme.line;
    c.lineWidth = 1;
    c.font = "11px system-ui, sans-serif";
    c.beginPath();
    for (let second = Math.max(0, Math.floor(this.frameAt(0) / rate)); x(second * rate) < width; second++) {
      const at = Math.round(x(second * rate)) + 0.5;
      c.moveTo(at, 0);
      c.lineTo(at, height);
      if (at > -40) c.fillText(clockText(second), at + 5, 16);
    }
    for (let k = 0; k < this.numKeys; k++) {
      const y = Math.round(height - lanes + (k + 0.5) * (lanes / this.numKeys)) + 0.5;
      c.moveTo(0, y);
      c.lineTo(width, y);
    }
    c.stroke();
  }

  drawWave(x, wave) {
    const { context: c } = this;
    const theme = this.colors();
    const from = Math.max(this.first, this.frameAt(0) - 1);
    const bar = this.frameWidth / PEAKS_PER_FRAME;
    let last = { key: 0, age: Infinity };
    for (let frame = Math.max(this.first, from - GLOW_FRAMES); frame < this.made; frame++) {
      const place = frame % FRAMES_KEPT;
      const action = this.actions[place];
      last = action > 0 && action <= this.numKeys ? { key: action, age: 0 } : { key: last.key, age: last.age + 1 };
      if (frame < from) continue;
      const glow = last.key ? Math.max(0, 1 - last.age / GLOW_FRAMES) : 0;
      c.globalAlpha = 1;
      c.fillStyle = theme.wave;
      this.drawPeaks(place, x(frame), bar, wave);
      if (glow === 0) continue;
      c.globalAlpha = glow;
      c.fillStyle = theme.key[last.key];
      this.drawPeaks(place, x(frame), bar, wave);
    }
    c.globalAlpha = 1;
  }

  /** The frame in this place, in as many bars as the screen can show. */
  drawPeaks(place, left, bar, { middle, tallest }) {
    const joined = bar > LEAST_BAR ? 1 : bar * 2 > LEAST_BAR ? 2 : PEAKS_PER_FRAME;
    for (let part = 0; part < PEAKS_PER_FRAME; part += joined) {
      let low = 0;
      let high = 0;
      for (let i = 0; i < joined; i++) {
        const peak = 2 * (place * PEAKS_PER_FRAME + part + i);
        low = Math.min(low, this.peaks[peak]);
        high = Math.max(high, this.peaks[peak + 1]);
      }
      const up = Math.min(1, high / FULL_SCALE) * tallest + 0.75;
      const down = Math.min(1, -low / FULL_SCALE) * tallest + 0.75;
      this.context.fillRect(left + part * bar, middle - up, Math.max(joined * bar * 1.05, 0.6), up + down);
    }
  }

  drawKeys(x, top, lanes) {
    const { context: c, numKeys } = this;
    const theme = this.colors();
    const lane = lanes / numKeys;
    const mark = (frame, key, filled) => {
      const radius = Math.min(8, lane * 0.4);
      c.beginPath();
      c.arc(x(frame + 0.5), top + (key - 0.5) * lane, radius, 0, 2 * Math.PI);
      c.fillStyle = c.strokeStyle = theme.key[key];
      c.lineWidth = 2;
      if (filled) c.fill();
      else c.stroke();
    };
    for (let frame = Math.max(this.first, this.frameAt(0) - 10); frame < this.made; frame++) {
      const action = this.actions[frame % FRAMES_KEPT];
      if (action > 0 && action <= numKeys) mark(frame, action, true);
    }
    for (const { key, frame } of this.pending) mark(Math.max(frame, this.made), key, false);
  }

  drawNow(nowX, height) {
    const { context: c } = this;
    const theme = this.colors();
    c.globalAlpha = 0.06;
    c.fillStyle = theme.ink;
    c.fillRect(nowX, 0, this.width - nowX, height);
    c.globalAlpha = 1;
    c.fillStyle = theme.accent;
    c.fillRect(nowX - 1, 0, 2, height);
    c.beginPath();
    c.arc(nowX, 4, 5, 0, 2 * Math.PI);
    c.fill();
  }
}

export function clockText(seconds, digits = 0) {
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${(seconds % 60).toFixed(digits).padStart(digits ? 3 + digits : 2, "0")}`;
}
