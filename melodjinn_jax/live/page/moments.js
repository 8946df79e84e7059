// Kept moments: whole sessions, held in the page, to go back to or to download.

import { clockText } from "./timeline.js";

const MOST_KEPT = 12;

export class Moments {
  constructor(list, onOpen) {
    Object.assign(this, { list, onOpen, count: 0 });
  }

  keep(bytes, seconds) {
    this.list.querySelector(".empty")?.remove();
    const name = `${++this.count} · ${clockText(seconds, 1)}`;
    const item = document.createElement("li");
    item.append(
      button(name, `Go on from kept moment ${name}`, () => this.onOpen(bytes)),
      button("⤓", `Download kept moment ${name}`, () => download(bytes, `moment-${this.count}.melodjinn`)),
    );
    this.list.append(item);
    if (this.list.children.length > MOST_KEPT) this.list.firstElementChild.remove();
  }
}

function button(text, label, action) {
  const element = document.createElement("button");
  element.type = "button";
  element.textContent = text;
  element.setAttribute("aria-label", label);
  element.addEventListener("click", action);
  return element;
}

export function download(bytes, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
