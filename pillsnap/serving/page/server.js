/**
 * What the page asks the server, and what can go wrong on the way. Knows HTTP, and nothing of the document.
 *
 * The addresses are relative to the page, so that it also works behind a proxy that puts it into a folder.
 */

const KEY = "pillsnap.api_key";
const TIMEOUT_MS = 30_000;
const LONGEST_WAIT_S = 15;
const UNSTATED_WAIT_S = 2;

/** No answer: `code` is that of problem+json, or network, offline, timeout, bad_answer. */
export class Problem extends Error {
  /** @param {{code: string, status?: number, title?: string, detail?: string, reference?: string, wait_s?: number}} told */
  constructor({ code, status = 0, title = "", detail = "", reference = "", wait_s = null }) {
    super(title || code);
    Object.assign(this, { name: "Problem", code, status, title, detail, reference, wait_s });
  }
}

export const apiKey = {
  value: readKey(),
  set(key) {
    this.value = key;
    try {
      if (key) sessionStorage.setItem(KEY, key);
      else sessionStorage.removeItem(KEY);
    } catch {
      // storage may be closed: the key then lasts as long as the page
    }
  },
};

/** Whether a header can carry it. */
export function isPossibleKey(key) {
  return /^[\x21-\x7e]+$/.test(key);
}

/** What the server says of itself. @param {string} language */
export function askInfo(language) {
  return request("v1/narrow/info", { headers: headers(language) });
}

/**
 * The answer to one photo, or to two photos of the same pill.
 * @param {{side: string, jpeg: Blob}[]} photos
 * @param {string} language
 * @param {AbortSignal} signal
 */
export function askPrediction(photos, language, signal) {
  if (photos.length === 1) {
    const raw = { ...headers(language), "Content-Type": "image/jpeg" };
    return request("v1/narrow/predict", { method: "POST", headers: raw, body: photos[0].jpeg, signal });
  }
  const body = new FormData();
  for (const { side, jpeg } of photos) body.append("images", jpeg, `${side}.jpg`);
  const address = "v1/narrow/batch_predict?same_pill=true";
  return request(address, { method: "POST", headers: headers(language), body, signal });
}

/**
 * Seconds to wait before the one automatic retry; null: do not retry.
 * @param {Problem} problem
 */
export function retryAfter(problem) {
  if (problem.status !== 503) return null;
  const wait_s = problem.wait_s ?? UNSTATED_WAIT_S;
  return wait_s <= LONGEST_WAIT_S ? wait_s : null;
}

/** Of problem+json that stands inside an answer. */
export function asProblem(told, status = 0, wait_s = null) {
  const said = (key) => (typeof told?.[key] === "string" ? told[key] : "");
  return new Problem({
    code: said("code") || "unknown",
    status,
    title: said("title"),
    detail: said("detail"),
    reference: said("request_id"),
    wait_s,
  });
}

async function request(address, { signal: given, ...options }) {
  const controller = new AbortController();
  const stop = () => controller.abort();
  const timer = setTimeout(stop, TIMEOUT_MS);
  given?.addEventListener("abort", stop);
  let response;
  let content;
  try {
    given?.throwIfAborted();
    const settings = { signal: controller.signal, credentials: "same-origin", cache: "no-store" };
    response = await fetch(address, { ...options, ...settings });
    content = await response.text();
  } catch (cause) {
    if (given?.aborted) throw cause; // the user went on to something else
    if (controller.signal.aborted) throw new Problem({ code: "timeout" });
    throw new Problem({ code: navigator.onLine === false ? "offline" : "network" });
  } finally {
    clearTimeout(timer);
    given?.removeEventListener("abort", stop);
  }
  const told = parsed(content);
  if (!response.ok) throw asProblem(told, response.status, seconds(response.headers.get("Retry-After")));
  if (told === null || typeof told !== "object") throw new Problem({ code: "bad_answer", status: response.status });
  return told;
}

function headers(language) {
  const sent = { Accept: "application/json", "Accept-Language": language };
  if (apiKey.value) sent["X-API-Key"] = apiKey.value;
  return sent;
}

function parsed(content) {
  try {
    return JSON.parse(content);
  } catch {
    return null;
  }
}

/** Retry-After is a number of seconds or a date. */
function seconds(header) {
  if (header === null) return null;
  const wait_s = /^\d+$/.test(header.trim()) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(wait_s) ? Math.max(0, Math.ceil(wait_s)) : null;
}

function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}
