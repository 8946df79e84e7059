// The keys, under fingers, mouse, keyboard and MIDI.

import { keyHue } from "./timeline.js";

const CAPS = "123456789qwertyuiop";
const MIDI_BASE = 36; // the lowest pad of most MIDI controllers: C2

export class Pads {
  constructor(container, { onDown, onUp, onMidi }) {
    Object.assign(this, { container, onDown, onUp, onMidi });
    this.pads = new Map(); // key -> button
    this.holders = new Map(); // key -> what holds it down: several may at once
    addEventListener("keydown", (event) => this.typed(event));
    addEventListener("keyup", ({ code, key }) => {
      const number = this.keyOf(key);
      if (number) this.up(number, `keyboard ${number}`);
      else if (code) this.up(0, code);
    });
    addEventListener("blur", () => this.releaseAll());
  }

  /** Make the pads; `keys` as in the welcome, NOOP among them. */
  build(keys) {
    this.container.replaceChildren();
    this.pads.clear();
    for (const { key, name } of keys.filter((one) => one.key > 0)) {
      const pad = document.createElement("button");
      const cap = CAPS[key - 1] ?? "";
      pad.type = "button";
      pad.className = "pad";
      pad.style.setProperty("--hue", keyHue(key));
      pad.append(span("cap", cap), span("name", name));
      pad.setAttribute("aria-label", `${name}, key ${cap || key}`);
      if (cap) pad.setAttribute("aria-keyshortcuts", cap);
      pad.dataset.key = key;
      this.listen(pad, key);
      this.pads.set(key, pad);
      this.container.append(pad);
    }
  }

  listen(pad, key) {
    pad.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      pad.setPointerCapture(event.pointerId);
      this.down(key, `pointer ${event.pointerId}`);
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      pad.addEventListener(end, (event) => this.up(key, `pointer ${event.pointerId}`));
    }
    // A screen reader clicks without a pointer; Enter and Space do too.
    pad.addEventListener("click", (event) => {
      if (event.detail !== 0) return;
      this.down(key, "click");
      this.up(key, "click");
    });
    pad.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  keyOf(letter) {
    const key = letter.length === 1 ? CAPS.indexOf(letter.toLowerCase()) + 1 : 0;
    return this.pads.has(key) ? key : 0;
  }

  typed(event) {
    const writes = event.target.matches?.("input[type=number]");
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || writes) return;
    const key = this.keyOf(event.key);
    if (key) this.down(key, `keyboard ${key}`);
  }

  down(key, holder) {
    if (!this.pads.has(key)) return;
    const holders = this.holders.get(key) ?? new Set();
    const first = holders.size === 0;
    this.holders.set(key, holders.add(holder));
    this.flash(key, true);
    if (first) this.onDown(key);
  }

  up(key, holder) {
    const holders = this.holders.get(key);
    if (!holders?.delete(holder) || holders.size) return;
    this.flash(key, false);
    this.onUp(key);
  }

  releaseAll() {
    for (const [key, holders] of this.holders) for (const holder of [...holders]) this.up(key, holder);
  }

  flash(key, down) {
    this.pads.get(key)?.classList.toggle("down", down);
  }

  /** Light a pad for a moment: its key was played by something else. */
  glint(key) {
    this.flash(key, true);
    setTimeout(() => this.holders.get(key)?.size || this.flash(key, false), 110);
  }

  /** Play from MIDI: notes from C2 on are the keys, again and again. */
  async useMidi() {
    if (!navigator.requestMIDIAccess) return this.onMidi("This browser has no MIDI.");
    let access;
    try {
      access = await navigator.requestMIDIAccess();
    } catch {
      return this.onMidi("The browser did not allow MIDI.");
    }
    const attach = () => {
      const inputs = [...access.inputs.values()];
      for (const input of inputs) input.onmidimessage = ({ data }) => this.midi(data);
      this.onMidi(
        inputs.length
          ? `Listening to ${inputs.map((input) => input.name).join(", ")}`
          : "No MIDI keyboard is connected.",
      );
    };
    access.onstatechange = attach;
    return attach();
  }

  midi([status, note, velocity]) {
    const kind = status & 0xf0;
    if (kind !== 0x80 && kind !== 0x90) return;
    const count = this.pads.size;
    const key = 1 + ((((note - MIDI_BASE) % count) + count) % count);
    if (kind === 0x90 && velocity > 0) this.down(key, `note ${note}`);
    else this.up(key, `note ${note}`);
  }
}

function span(className, text) {
  const element = document.createElement("span");
  element.className = className;
  element.textContent = text;
  return element;
}
