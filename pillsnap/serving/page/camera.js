/**
 * The viewfinder: a live picture in a square, a shutter, and the stream stopped whenever the dialog is not open.
 *
 * What the square shows is what is taken: it covers its box, so it is the centred square of the frame, and that square
 * is handed on without scaling and without loss, for the client's steps to follow.
 */

import { centreCrop } from "./pillsnap_client.js";
import { text } from "./texts.js";

const WISHED = { video: { facingMode: { ideal: "environment" }, width: { ideal: 1920 }, height: { ideal: 1440 } } };
const dialog = document.getElementById("camera");
const video = document.getElementById("camera-video");
const shutter = document.getElementById("camera-shutter");
const said = document.getElementById("camera-said");

let stream = null;
let opened = 0; // grows with every opening: a stream that arrives for an older one is stopped

export function cameraIsThere() {
  return typeof navigator.mediaDevices?.getUserMedia === "function" && typeof dialog.showModal === "function";
}

/**
 * Opens the viewfinder.
 * @param {string} side name of the side, for the heading
 * @returns {Promise<Blob|"app"|"file"|null>} the photo, or what the user wants instead
 */
export function takePhoto(side) {
  document.getElementById("camera-heading").textContent = text("camera.heading", { side });
  dialog.returnValue = "";
  dialog.showModal();
  void start(++opened);
  return new Promise((resolve) => {
    let photo = null;
    const take = async () => {
      shutter.disabled = true;
      photo = await squareOfTheFrame();
      dialog.close(photo ? "taken" : "");
    };
    shutter.addEventListener("click", take);
    dialog.addEventListener(
      "close",
      () => {
        shutter.removeEventListener("click", take);
        stop();
        resolve(photo ?? (["app", "file"].includes(dialog.returnValue) ? dialog.returnValue : null));
      },
      { once: true },
    );
  });
}

async function start(opening) {
  said.textContent = text("camera.starting");
  shutter.disabled = true;
  try {
    const given = await navigator.mediaDevices.getUserMedia(WISHED);
    if (opening !== opened || !dialog.open) {
      stopTracks(given);
      return;
    }
    stream = given;
    video.srcObject = given;
    await video.play();
    said.textContent = text("camera.on");
    shutter.disabled = false;
    shutter.focus();
  } catch (error) {
    if (opening !== opened || !dialog.open) return;
    stop();
    said.textContent = text(reason(error));
  }
}

function reason(error) {
  if (error.name === "NotAllowedError" || error.name === "SecurityError") return "camera.denied";
  return error.name === "NotFoundError" || error.name === "OverconstrainedError" ? "camera.missing" : "camera.failed";
}

function stop() {
  opened++;
  if (stream !== null) stopTracks(stream);
  stream = null;
  video.srcObject = null;
}

function stopTracks(stream) {
  for (const track of stream.getTracks()) track.stop();
}

/** @returns {Promise<Blob|null>} PNG: nothing is lost before the client's steps */
async function squareOfTheFrame() {
  const { left, top, side } = centreCrop(video.videoWidth, video.videoHeight);
  if (side === 0) return null;
  const canvas = Object.assign(document.createElement("canvas"), { width: side, height: side });
  canvas.getContext("2d").drawImage(video, left, top, side, side, 0, 0, side, side);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

for (const button of dialog.querySelectorAll("button[value]")) {
  button.addEventListener("click", () => dialog.close(button.value));
}
document.addEventListener("visibilitychange", () => {
  if (document.hidden && dialog.open) dialog.close("");
});
window.addEventListener("pagehide", stop);
