/**
 * From the server's answer, or from what went wrong, to what is seen of it.
 *
 * Names are written by others: all of them go in as text, never as markup. Sure is only what says `sure: true`, from a
 * server that prepares photos as this page does, about two sides that do not contradict each other.
 */

import { currentLanguage, hasText, text } from "./texts.js";

const MOST_CARDS = 5;

/**
 * @param {HTMLElement} body is emptied and filled
 * @param {{kind: string}} outcome empty, busy, waiting, problem, answer
 * @param {() => void} retry
 */
export function drawOutcome(body, outcome, retry) {
  const parts = { empty, busy, waiting, problem, answer }[outcome.kind](outcome, retry);
  const opened = body.querySelector("details")?.open === true && body.dataset.kind === outcome.kind;
  body.replaceChildren(...parts);
  body.dataset.kind = outcome.kind;
  if (opened) body.querySelector("details").open = true; // after a change of language
  body.parentElement.setAttribute("aria-busy", String(outcome.kind === "busy" || outcome.kind === "waiting"));
}

/** Whether there is something to draw. */
export function isAnswer(told) {
  const judged = judgement(told);
  return judged !== null || (Array.isArray(told.results) && told.results.some((result) => result?.problem));
}

function empty() {
  const tips = ["one", "near", "light"].map((tip) => make("li", {}, text(`answer.tip.${tip}`)));
  return [
    heading("answer.heading"),
    make("div", { class: "hint" }, icon("pill"), make("p", {}, text("answer.empty"))),
    make("h3", { class: "tips-heading" }, text("answer.tips")),
    make("ul", { class: "tips", role: "list" }, ...tips),
  ];
}

function busy() {
  const cards = Array.from({ length: MOST_CARDS }, () => make("div", { class: "ghost" }));
  return [
    heading("answer.heading"),
    make("p", { class: "busy-line" }, make("span", { class: "spinner", "aria-hidden": "true" }), text("identify.busy")),
    make("div", { class: "ghosts", "aria-hidden": "true" }, ...cards),
  ];
}

function waiting({ seconds }) {
  const spinner = make("span", { class: "spinner", "aria-hidden": "true" });
  return [
    heading("answer.heading"),
    make("p", { class: "busy-line", id: "waiting" }, spinner, text("problem.waiting", { seconds })),
  ];
}

function problem({ problem: told, language }, retry) {
  const known = hasText(`problem.${told.code}`);
  const ofThisLanguage = language === currentLanguage();
  const title = known ? text(`problem.${told.code}`) : (ofThisLanguage && told.title) || text("problem.unknown");
  const next = text(known ? `problem.${told.code}.next` : "problem.unknown.next");
  const lines = [heading(null, title), make("p", {}, next)];
  if (ofThisLanguage && told.detail) lines.push(make("p", { class: "detail" }, told.detail));
  if (told.reference) lines.push(make("p", { class: "detail" }, text("problem.reference", { id: told.reference })));
  if (mayPass(told.status)) {
    const button = make("button", { class: "button", type: "button", id: "retry" }, icon("again"), text("problem.retry"));
    button.addEventListener("click", retry);
    lines.push(button);
  }
  const words = make("div", { class: "verdict-words" }, ...lines);
  return [make("div", { class: "verdict", "data-kind": "problem" }, icon("problem"), words)];
}

/** Whether the same photo may be answered at another time; else another photo is needed. */
function mayPass(status) {
  return status < 400 || status >= 500 || status === 408 || status === 429;
}

function answer({ answer: told, total_ms: total, sides, drift }) {
  const { judged, notes, disagree, candidates } = read(told, sides);
  const sure = judged.sure === true && !drift && !disagree && candidates.length > 0;
  const parts = [verdict(sure, candidates.length > 0, sides.length)];
  for (const note of notes) parts.push(make("p", { class: "note-line", "data-kind": "unsure" }, icon("unsure"), note));
  const remarks = warningsOf(told, sides);
  if (remarks.length > 0) {
    const list = make("ul", {}, ...remarks.map((remark) => make("li", {}, remark)));
    parts.push(make("div", { class: "remarks" }, make("h3", {}, text("answer.warnings")), list));
  }
  if (sides.length > 1 && notes.length === 0) parts.push(make("p", { class: "fine" }, text("answer.both")));
  if (candidates.length > 0) {
    const threshold = share(judged.unsure_below);
    const cards = candidates.map((candidate, index) => card(candidate, index, threshold));
    parts.push(make("ol", { class: "cards", role: "list", "data-sure": String(sure) }, ...cards));
    if (threshold !== null) {
      parts.push(make("p", { class: "fine" }, text("answer.threshold", { share: percent(threshold) })));
    }
  }
  parts.push(about(told, total, sides));
  return parts;
}

function verdict(sure, any, sides) {
  const kind = sure ? "sure" : "unsure";
  const words = [heading(`answer.${kind}`), make("p", {}, text(any ? `answer.${kind}.next` : "answer.none"))];
  if (!sure && any) words.push(make("p", {}, text(sides > 1 ? "answer.unsure.two" : "answer.unsure.one")));
  const block = make("div", { class: "verdict", "data-kind": kind }, icon(sure ? "match" : "unsure"));
  block.append(make("div", { class: "verdict-words" }, ...words));
  return block;
}

/** The part of an answer that is shown as cards, and what must be known before one reads them. */
function read(told, sides) {
  const judged = judgement(told) ?? { predictions: [], sure: false };
  const results = Array.isArray(told.results) ? told.results : [];
  const notes = [];
  const failed = results.findIndex((result) => result?.problem);
  const used = results.findIndex((result) => !result?.problem);
  if (failed >= 0 && used >= 0) {
    notes.push(text("answer.one_side", { failed: text(`side.${sides[failed]}`), used: text(`side.${sides[used]}`) }));
  }
  const tops = results.map((result) => (result?.sure === true ? result.predictions?.[0] : null));
  const disagree = tops.length === 2 && tops.every(Boolean) && tops[0].kcode !== tops[1].kcode;
  if (disagree) {
    const named = sides.map((side, index) => [side, written(tops[index].drug_name)]);
    notes.push(text("answer.disagree", Object.fromEntries(named)));
  }
  return { judged, notes, disagree, candidates: judged.predictions.slice(0, MOST_CARDS) };
}

/** What has `predictions` and `sure`: the answer itself, the two sides combined, or the one side that could be read. */
function judgement(told) {
  const places = [told, told.combined, ...(Array.isArray(told.results) ? told.results : [])];
  return places.find((place) => Array.isArray(place?.predictions)) ?? null;
}

function warningsOf(told, sides) {
  const places = Array.isArray(told.results) ? told.results : [told];
  return places.flatMap((place, index) =>
    (Array.isArray(place?.warnings) ? place.warnings : []).map((warning) => {
      const words = hasText(`warning.${warning?.code}`) ? text(`warning.${warning.code}`) : written(warning?.message);
      return places.length > 1 ? `${text(`side.${sides[index]}`)}: ${words}` : words;
    }),
  );
}

function card(candidate, index, threshold) {
  const confidence = share(candidate?.confidence);
  const rank = make("span", { class: "rank" }, make("span", { class: "for-ears" }, text("answer.rank", { rank: index + 1 })));
  rank.append(make("span", { "aria-hidden": "true" }, String(index + 1)));
  const who = make(
    "div",
    { class: "who" },
    make("h3", { lang: "ko" }, written(candidate?.drug_name)),
    make("p", { class: "maker", lang: "ko" }, written(candidate?.manufacturer)),
    make("code", { class: "kcode" }, written(candidate?.kcode)),
  );
  const number = make("span", { class: "number" }, make("span", { class: "for-ears" }, text("answer.confidence")));
  number.append(" ", confidence === null ? "–" : percent(confidence));
  const bar = make("div", { class: "bar", "aria-hidden": "true" }, make("div", { class: "fill" }));
  bar.style.setProperty("--share", String(confidence ?? 0)); // the object model: CSP forbids the attribute, not this
  if (index === 0 && threshold !== null) {
    bar.append(make("div", { class: "threshold" }));
    bar.style.setProperty("--threshold", String(threshold));
  }
  return make("li", { class: "card" }, rank, who, make("div", { class: "confidence" }, number, bar));
}

function about(told, total, sides) {
  const model = told.model ?? {};
  const named = [model.name, model.version && `v${model.version}`, model.alias && `(${model.alias})`];
  const lines = [
    [text("answer.model"), named.filter(Boolean).map(written).join(" ")],
    [text("answer.digest"), written(model.sha256 ?? "")],
    [text("answer.preprocessing"), written(told.preprocessing_fingerprint ?? "")],
    [text("answer.time"), text("answer.times", { server: milliseconds(told.processing_time_ms), total: milliseconds(total) })],
  ];
  if (Array.isArray(told.results)) {
    told.results.forEach((result, index) => {
      const top = result?.predictions?.[0];
      if (!top) return;
      const confidence = share(top.confidence);
      const words = `${written(top.drug_name)} · ${written(top.kcode)}`;
      const side = text(`side.${sides[index]}`);
      const label = text("answer.side_top", { side });
      lines.push([label, confidence === null ? words : `${words} · ${percent(confidence)}`]);
    });
  }
  const rows = lines
    .filter(([, words]) => words !== "" && words !== "–")
    .map(([name, words]) => make("div", {}, make("dt", {}, name), make("dd", {}, words)));
  return make("details", { class: "about" }, make("summary", {}, text("answer.about")), make("dl", {}, ...rows));
}

function heading(key, words = text(key)) {
  return make("h2", { id: "answer-heading", tabindex: "-1" }, words);
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** An element with attributes and children; a string among them becomes text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function written(value) {
  return typeof value === "string" || typeof value === "number" ? String(value) || "–" : "–";
}

/** A number of 0..1, or null where it is none. */
function share(value) {
  return typeof value === "number" && value >= 0 && value <= 1 ? value : null;
}

/** Never "100 %": no model is that sure, and nobody should read it. */
function percent(value) {
  const format = new Intl.NumberFormat(currentLanguage(), { style: "percent", maximumFractionDigits: 1 });
  if (value > 0.999) return `> ${format.format(0.999)}`;
  return value > 0 && value < 0.001 ? `< ${format.format(0.001)}` : format.format(value);
}

function milliseconds(value) {
  const format = new Intl.NumberFormat(currentLanguage(), { maximumFractionDigits: 0 });
  return typeof value === "number" && Number.isFinite(value) ? format.format(value) : "–";
}
