/**
 * The two sides of the pill: each is empty, being prepared, or a 512-pixel JPEG that is shown and sent as it is.
 *
 * The picture on the screen is the very blob that goes to the server; the original is let go as soon as it is prepared.
 */

import { CONTRACT, PhotoError, preparePhoto } from "./pillsnap_client.js";
import { cameraIsThere, takePhoto } from "./camera.js";
import { text } from "./texts.js";

const template = document.getElementById("slot");
const large = document.getElementById("large");

export class Slot {
  /**
   * @param {"front"|"back"} side
   * @param {HTMLElement} place where it is put
   * @param {{changed: (slot: Slot) => void, say: (message: string) => void, looksAt: () => number}} page
   *   `looksAt`: pixels of a side that the model looks at; a smaller photo is remarked on
   */
  constructor(side, place, page) {
    this.side = side;
    this.page = page;
    this.jpeg = null;
    this.busy = false;
    this.problem = null; // a code, of PhotoError or of the server
    this.original = null; // its size in pixels, where it is known
    this.work = 0; // grows with every photo: the result of an older one is dropped
    this.root = template.content.firstElementChild.cloneNode(true);
    this.root.dataset.side = side;
    this.part("name").id = `${side}-name`;
    this.root.setAttribute("aria-labelledby", `${side}-name`);
    place.append(this.root);
    this.listen();
    this.draw();
  }

  part(name) {
    return this.root.querySelector(`[data-part="${name}"]`);
  }

  get name() {
    return text(`side.${this.side}`);
  }

  listen() {
    this.part("take").addEventListener("click", () => this.take());
    this.part("choose").addEventListener("click", () => this.part("file").click());
    this.part("remove").addEventListener("click", () => this.remove());
    this.part("preview").addEventListener("click", () => this.showLarge());
    for (const input of [this.part("file"), this.part("app")]) {
      input.addEventListener("change", () => {
        const [file] = input.files;
        if (file) void this.put(file);
        input.value = ""; // the same file may be chosen again
      });
    }
  }

  async take() {
    const taken = cameraIsThere() ? await takePhoto(this.name) : "app";
    if (taken instanceof Blob) await this.put(taken);
    else if (taken !== null) this.part(taken).click();
  }

  /** @param {Blob} photo */
  async put(photo) {
    const work = ++this.work;
    this.let_go();
    this.busy = true;
    this.draw();
    this.page.changed(this);
    this.page.say(text("photo.preparing"));
    const [prepared, size] = await Promise.all([prepare(photo), sizeOf(photo)]);
    if (work !== this.work) return;
    this.busy = false;
    if (prepared instanceof Blob) {
      this.jpeg = prepared;
      this.url = URL.createObjectURL(prepared);
      this.original = size;
    } else {
      this.problem = prepared;
    }
    this.draw();
    this.page.say(this.jpeg ? text("photo.ready", { side: this.name }) : this.problemText(), !this.jpeg);
    this.page.changed(this);
  }

  remove() {
    this.work++;
    this.let_go();
    this.busy = false;
    this.draw();
    this.part("take").focus();
    this.page.say(text("photo.removed", { side: this.name }));
    this.page.changed(this);
  }

  /** The server cannot use this photo. */
  refuse(code) {
    this.problem = code;
    this.draw();
  }

  let_go() {
    if (this.url) URL.revokeObjectURL(this.url);
    Object.assign(this, { jpeg: null, url: null, problem: null, original: null });
  }

  problemText() {
    return `${text(`problem.${this.problem}`)}. ${text(`problem.${this.problem}.next`)}`;
  }

  /** Everything that is seen of the slot, from its state and in the current language. */
  draw() {
    const values = { side: this.name };
    this.part("name").textContent = this.name;
    this.part("optional").textContent = text("side.optional");
    this.part("optional").hidden = this.side === "front";
    this.part("take-text").textContent = text("photo.take");
    this.part("choose-text").textContent = text("photo.choose");
    this.part("drop-hint").textContent = text("photo.drop");
    this.part("busy-text").textContent = text("photo.preparing");
    for (const name of ["take", "choose", "remove"]) {
      this.part(name).setAttribute("aria-label", text(`photo.${name}.label`, values));
    }
    this.part("file").setAttribute("aria-label", text("photo.choose.label", values));
    this.part("app").setAttribute("aria-label", text("photo.take.label", values));
    this.part("preview").setAttribute("aria-label", text("photo.large.label", values));

    this.part("empty").hidden = this.busy || this.jpeg !== null;
    this.part("busy").hidden = !this.busy;
    this.part("photo").hidden = this.jpeg === null;
    this.root.dataset.state = this.busy ? "busy" : this.jpeg ? "photo" : "empty";
    const image = this.part("image");
    image.alt = this.jpeg ? text("photo.alt", values) : "";
    if (this.jpeg) {
      if (image.getAttribute("src") !== this.url) image.src = this.url;
      const side = CONTRACT.target_size;
      const size = (this.jpeg.size / 1024).toFixed(0);
      this.part("caption").textContent = text("photo.sent", { width: side, height: side, size });
    } else {
      image.removeAttribute("src");
    }
    const small = this.original !== null && Math.min(this.original.width, this.original.height) < this.page.looksAt();
    this.part("small").hidden = !small;
    this.part("small").textContent = small ? text("photo.small", this.original) : "";
    this.part("problem").hidden = this.problem === null;
    this.part("problem").textContent = this.problem === null ? "" : this.problemText();
  }

  showLarge() {
    const image = document.getElementById("large-image");
    image.src = this.url;
    image.alt = text("photo.alt", { side: this.name });
    document.getElementById("large-heading").textContent = this.name;
    large.showModal();
  }
}

document.getElementById("large-close").addEventListener("click", () => large.close());

/** @returns {Promise<Blob|string>} the JPEG, or the code of why there is none */
async function prepare(photo) {
  await new Promise((resolve) => setTimeout(resolve, 0)); // "preparing" is on the screen before the work begins
  try {
    return await preparePhoto(photo);
  } catch (error) {
    return error instanceof PhotoError ? error.code : "undecodable";
  }
}

/** The size of a picture from its header: the browser shows it before it decodes. */
async function sizeOf(photo) {
  const url = URL.createObjectURL(photo);
  try {
    const image = new Image();
    await new Promise((resolve, reject) => Object.assign(image, { onload: resolve, onerror: reject, src: url }));
    return { width: image.naturalWidth, height: image.naturalHeight };
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** The files of a drop or a paste. @param {DataTransfer} transfer */
export function filesOf(transfer) {
  return Array.from(transfer?.files ?? []);
}
