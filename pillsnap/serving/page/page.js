/**
 * The page: photos go in, an answer comes out, and it is said aloud what happens in between.
 *
 * An answer never stands beside a photo that it is not of: whenever a photo changes, the answer goes.
 */

import { CONTRACT } from "./pillsnap_client.js";
import { drawOutcome, isAnswer } from "./answer.js";
import { Slot, filesOf } from "./photos.js";
import { Problem, apiKey, asProblem, askInfo, askPrediction, isPossibleKey, retryAfter } from "./server.js";
import { chooseLanguage, currentLanguage, text, translateDocument } from "./texts.js";

const at = (id) => document.getElementById(id);
let info = null;
const looksAt = () => Math.min(info?.preprocessing?.target_size ?? Infinity, CONTRACT.target_size);
const slots = ["front", "back"].map((side) => new Slot(side, at("slots"), { changed: photoChanged, say, looksAt }));

let outcome = { kind: "empty" };
let asking = null; // the AbortController of the request under way
let drift = false;
let answered = false; // these photos have been asked about: the button says "again"

/* What is said: politely, or at once. */

function say(message, urgent = false) {
  at("say-politely").textContent = urgent ? "" : message;
  at("say-now").textContent = urgent ? message : "";
}

/* What is seen. */

function show(next) {
  outcome = next;
  drawOutcome(at("answer-body"), outcome, identify);
  drawButton();
}

function drawButton() {
  const busy = outcome.kind === "busy" || outcome.kind === "waiting";
  const key = busy ? "identify.busy" : answered ? "identify.again" : "identify";
  at("identify-text").textContent = text(key);
  at("identify").setAttribute("aria-disabled", String(busy));
  at("identify").dataset.ready = String(slots.some((slot) => slot.jpeg !== null));
}

function drawInfo() {
  const model = info?.model ?? {};
  at("footer-model").textContent = [model.name, model.version && `v${model.version}`].filter(Boolean).join(" ");
  at("footer-contract").textContent = `client ${CONTRACT.version} · ${CONTRACT.fingerprint}`;
  const count = info?.classes;
  at("note-classes").hidden = !Number.isInteger(count);
  if (Number.isInteger(count)) at("note-classes").textContent = text("note.classes", { count });
  at("drift").hidden = !drift;
  at("drift-text").textContent = drift ? `${text("drift.title")}. ${text("drift.next")}` : "";
  at("forget-key").hidden = apiKey.value === "";
}

function drawLanguage() {
  translateDocument();
  for (const button of document.querySelectorAll("[data-language]")) {
    button.setAttribute("aria-pressed", String(button.dataset.language === currentLanguage()));
  }
  for (const slot of slots) slot.draw();
  drawInfo();
  show(outcome);
}

/* Photos. */

function photoChanged(slot) {
  asking?.abort();
  asking = null;
  answered = false;
  if (outcome.kind !== "empty") show({ kind: "empty" });
  drawButton();
  const lost = document.activeElement === document.body || slot.root.contains(document.activeElement);
  if (lost && !slot.busy) (slot.jpeg === null ? slot.part("take") : at("identify")).focus({ preventScroll: true });
}

/** @param {File[]} files @param {Slot} [wanted] the side that they were dropped on */
function takeFiles(files, wanted) {
  if (files.length === 0) {
    say(text("photo.no_file"), true);
    return;
  }
  const free = slots.filter((slot) => slot !== wanted && slot.jpeg === null && !slot.busy);
  const taken = slots.filter((slot) => slot !== wanted && !free.includes(slot));
  const order = [...(wanted ? [wanted] : []), ...free, ...taken];
  files.slice(0, slots.length).forEach((file, index) => void order[index].put(file));
  if (files.length > slots.length) say(text("photo.too_many"), true);
}

/* The question to the server. */

async function identify() {
  if (outcome.kind === "busy" || outcome.kind === "waiting") return;
  if (slots.some((slot) => slot.busy)) {
    say(text("photo.preparing"));
    return;
  }
  const photos = slots.filter((slot) => slot.jpeg !== null);
  if (photos.length === 0) {
    say(text("photo.none"), true);
    slots[0].part("take").focus();
    return;
  }
  const controller = new AbortController();
  asking = controller;
  const started = performance.now();
  const language = currentLanguage();
  show({ kind: "busy" });
  say(text("identify.busy"));
  const knowing = info === null ? learn() : null; // the server may have been away when the page was loaded
  try {
    const answer = await askPatiently(photos, language, controller.signal);
    await knowing;
    if (controller.signal.aborted) return;
    showAnswer(answer, photos, language, performance.now() - started);
    if (info !== null && answer.model?.sha256 !== info.model?.sha256) void learn(); // another champion by now
  } catch (error) {
    if (controller.signal.aborted) return;
    showProblem(error instanceof Problem ? error : new Problem({ code: "bad_answer" }), language);
  } finally {
    if (asking === controller) asking = null;
  }
}

/** Once more, after the time that a busy server names. */
async function askPatiently(photos, language, signal) {
  try {
    return await askPrediction(photos, language, signal);
  } catch (error) {
    const wait_s = error instanceof Problem ? retryAfter(error) : null;
    if (wait_s === null) throw error;
    say(text("problem.waiting", { seconds: wait_s }));
    for (let seconds = wait_s; seconds > 0; seconds--) {
      show({ kind: "waiting", seconds });
      await new Promise((resolve) => setTimeout(resolve, 1000));
      signal.throwIfAborted();
    }
    show({ kind: "busy" });
    return askPrediction(photos, language, signal);
  }
}

function showAnswer(answer, photos, language, total_ms) {
  if (!isAnswer(answer)) {
    showProblem(new Problem({ code: "bad_answer" }), language);
    return;
  }
  const results = Array.isArray(answer.results) ? answer.results : [];
  results.forEach((result, index) => {
    if (result?.problem) photos[index]?.refuse(knownProblem(result.problem));
  });
  if (results.length > 0 && results.every((result) => result?.problem)) {
    showProblem(asProblem(results[0].problem), language);
    return;
  }
  answered = true;
  show({ kind: "answer", answer, total_ms, sides: photos.map((photo) => photo.side), drift });
  say(text("answer.announce", { count: document.querySelectorAll("#answer-body .card").length }));
  at("answer-heading").focus();
}

function knownProblem(told) {
  const { code } = asProblem(told);
  return ["empty", "truncated", "undecodable", "unsupported_format", "too_many_bytes", "too_many_pixels"].includes(code)
    ? code
    : "unknown";
}

function showProblem(problem, language) {
  if (problem.status === 401) {
    askForKey();
    show({ kind: "empty" });
    at("key-input").focus();
    return;
  }
  show({ kind: "problem", problem, language });
  at("answer-heading").focus();
}

/* The API key. */

function askForKey(refused = apiKey.value !== "") {
  const again = at("key-input").getAttribute("aria-invalid") === "true"; // the other request of the same key was here
  apiKey.set("");
  at("key").hidden = false;
  drawInfo();
  if (!refused) return;
  drawKeyHeading("key.refused");
  if (!again) say(text("key.refused"), true);
}

function drawKeyHeading(key) {
  at("key-heading").dataset.text = key;
  at("key-heading").textContent = text(key);
  at("key-input").setAttribute("aria-invalid", String(key === "key.refused"));
}

at("key").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = at("key-input").value.trim();
  if (given === "") {
    say(text("key.empty"), true);
    at("key-input").focus();
    return;
  }
  drawKeyHeading("key.heading");
  if (!isPossibleKey(given)) {
    askForKey(true);
    at("key-input").select();
    return;
  }
  apiKey.set(given);
  at("key-input").value = "";
  at("key").hidden = true;
  drawInfo();
  say(text("key.saved"));
  if (slots.some((slot) => slot.jpeg !== null)) void identify();
  else void learn().then(() => (at("key").hidden ? slots[0].part("take") : at("key-input")).focus());
});

at("forget-key").addEventListener("click", () => {
  apiKey.set("");
  drawInfo();
  say(text("key.forgotten"));
  at("identify").focus();
});

/* What the server says of itself. */

async function learn() {
  try {
    info = await askInfo(currentLanguage());
    const theirs = info?.client_contract?.fingerprint;
    drift = theirs !== undefined && theirs !== CONTRACT.fingerprint;
    drawInfo();
    for (const slot of slots) slot.draw();
  } catch (error) {
    if (error instanceof Problem && error.status === 401) askForKey();
  }
}

/* Language, drop, paste. */

for (const button of document.querySelectorAll("[data-language]")) {
  button.addEventListener("click", () => {
    chooseLanguage(button.dataset.language);
    say("");
    drawLanguage();
  });
}

at("identify").addEventListener("click", () => void identify());

let within = 0; // dragenter and dragleave come for every element that is passed
const dragged = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragenter", (event) => {
  if (!dragged(event)) return;
  within++;
  document.body.dataset.dragging = "true";
});
document.addEventListener("dragleave", (event) => {
  if (dragged(event) && --within <= 0) stopDragging();
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  stopDragging();
  const on = event.target instanceof Element ? event.target.closest(".slot") : null;
  takeFiles(filesOf(event.dataTransfer), slots.find((slot) => slot.root === on));
});
document.addEventListener("paste", (event) => {
  const files = filesOf(event.clipboardData);
  if (files.length === 0 && event.target instanceof HTMLInputElement) return; // the key is being pasted
  event.preventDefault();
  takeFiles(files);
});

function stopDragging() {
  within = 0;
  delete document.body.dataset.dragging;
}

drawLanguage();
document.body.dataset.started = "true";
void learn();
