// Beats, in frames: given, tapped, or estimated from what was played.

const TAPS_KEPT = 8;
const TAP_GAP_SECONDS = 2.5;
const FOLLOWED_BPM = [60, 180];
const BPM_STEP = 0.25;
const LEAST_REGULARITY = 0.6;
const PRICE_OF_FINENESS = 0.05;

export class Tempo {
  constructor(framesPerSecond, low, high) {
    Object.assign(this, { framesPerSecond, low, high });
    this.forget();
  }

  /** No tempo any more: the frames that it counted in are gone. */
  forget() {
    this.bpm = null;
    this.beat = 0;
    this.taps = [];
  }

  set(bpm, beat) {
    this.bpm = bpm;
    this.beat = beat;
  }

  period(bpm = this.bpm) {
    return (60 * this.framesPerSecond) / bpm;
  }

  /** A beat was tapped at `frame`; from the second tap on there is a tempo. */
  tap(frame) {
    const since = frame - this.taps.at(-1);
    if (!(since > 0 && since <= TAP_GAP_SECONDS * this.framesPerSecond)) this.taps = [];
    this.taps = [...this.taps, frame].slice(-TAPS_KEPT);
    if (this.taps.length < 2) return this.bpm !== null;
    const period = (frame - this.taps[0]) / (this.taps.length - 1);
    this.set(Math.max(this.low, Math.min(this.high, this.period(period))), frame);
    return true;
  }

  /**
   * Find the tempo in the frames at which keys were played; false if they are not regular. It is that of a beat, of
   * half of it or of a quarter, on which they fall.
   */
  follow(onsets) {
    if (onsets.length < 4) return false;
    let best = { score: -Infinity };
    for (let bpm = FOLLOWED_BPM[0]; bpm < FOLLOWED_BPM[1]; bpm += BPM_STEP) {
      [1, 2, 4].forEach((parts, i) => {
        const score = agreement(onsets, this.period(bpm) / parts).size - i * PRICE_OF_FINENESS;
        if (score > best.score) best = { score, bpm };
      });
    }
    if (best.score < LEAST_REGULARITY) return false;
    const period = this.period(best.bpm);
    const { phase } = agreement(onsets, period);
    this.set(best.bpm, (Math.floor(onsets.at(-1) / period - phase) + phase) * period);
    return true;
  }

  /** The first beat at `frame` or after it, rounded to a frame. */
  nextBeat(frame) {
    const period = this.period();
    const beats = Math.ceil((frame - this.beat) / period - 1e-9);
    return Math.max(frame, Math.round(this.beat + beats * period));
  }
}

/** Where frames lie within a period, as points on a circle: how far out their mean is, and its angle in turns. */
function agreement(frames, period) {
  let x = 0;
  let y = 0;
  for (const frame of frames) {
    x += Math.cos((2 * Math.PI * frame) / period) / frames.length;
    y += Math.sin((2 * Math.PI * frame) / period) / frames.length;
  }
  return { size: Math.hypot(x, y), phase: Math.atan2(y, x) / (2 * Math.PI) };
}
