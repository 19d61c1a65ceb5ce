/**
 * The browser client: makes of any photo the small JPEG that PillSnap's server expects.
 *
 *   import { preparePhoto } from "./pillsnap_client.js";
 *   const jpeg = await preparePhoto(fileInput.files[0]);   // a Blob of 512 × 512 pixels
 *
 * It carries out contract.json (beside this file), and the golden vectors hold it to that. The resize is written out
 * here because the scaling of a canvas differs between browsers. An ES module without dependencies; the pure functions
 * (centreCrop, linearTaps, resizeLinear, resizeRows, isCutOff, withoutColourProfile, withoutMetadata) also run in
 * Node.js.
 */

/** What this client does, in the form that the server compares with its own contract. */
export const CONTRACT = Object.freeze({
  version: "1.0",
  target_size: 512,
  jpeg_quality: 85,
  interpolation: "linear",
  crop: "center",
  orientation: "exif_applied_and_dropped",
  color: "stored_values",
  alpha: "ignored",
  pixel_centers: "half",
  border: "clamp",
  rounding: "half_up",
  upscale: true,
  chroma_subsampling: "4:2:0",
  metadata: "none",
  fingerprint: "73fddbcf93a7b388",
});

/** Source pixels that are read from the picture at a time: about 16 MB, under every browser's limit for a canvas. */
const BAND_PIXELS = 4 * 1024 * 1024;

/** What decoders differ by among each other, in levels of 0..255; a browser that changes pixels by more is refused. */
const SAME_LEVELS = 4;

/** The chunks of a PNG that tell how its values are to be changed before they are shown. */
const COLOUR_CHUNKS = ["iCCP", "sRGB", "gAMA", "cHRM", "cICP"];

/** A photo that cannot be prepared. `code` is for programs, `message` for people. */
export class PhotoError extends Error {
  /**
   * @param {"empty"|"truncated"|"undecodable"|"unsupported_browser"|"disturbed_pixels"|"encoding_failed"} code
   * @param {string} message
   * @param {unknown} [cause]
   */
  constructor(code, message, cause) {
    super(message, { cause });
    this.name = "PhotoError";
    this.code = code;
  }
}

/**
 * The centred square of a picture, in whole pixels.
 * @param {number} width
 * @param {number} height
 * @returns {{left: number, top: number, side: number}}
 */
export function centreCrop(width, height) {
  const side = Math.min(width, height);
  return { left: Math.floor((width - side) / 2), top: Math.floor((height - side) / 2), side };
}

/**
 * For each output index the two source indices and the weight of the second one. Pixel centres lie at index + 0.5.
 * @param {number} sourceSide
 * @param {number} targetSize
 * @returns {{low: Int32Array, high: Int32Array, weight: Float64Array}}
 */
export function linearTaps(sourceSide, targetSize) {
  const low = new Int32Array(targetSize);
  const high = new Int32Array(targetSize);
  const weight = new Float64Array(targetSize);
  for (let i = 0; i < targetSize; i++) {
    const position = ((i + 0.5) * sourceSide) / targetSize - 0.5;
    const floor = Math.floor(position);
    low[i] = Math.min(Math.max(floor, 0), sourceSide - 1);
    high[i] = Math.min(Math.max(floor + 1, 0), sourceSide - 1);
    weight[i] = position - floor;
  }
  return { low, high, weight };
}

/**
 * Bilinear resize of some output rows, from a band of the source square. Alpha is dropped: the output is opaque.
 * @param {Uint8Array|Uint8ClampedArray} band RGBA rows of the source square, `side` pixels wide
 * @param {number} bandTop which row of the square the band starts with
 * @param {{low: Int32Array, high: Int32Array, weight: Float64Array}} taps of `linearTaps(side, size)`
 * @param {number} side of the source square, in pixels
 * @param {number} from the first output row
 * @param {number} to the row after the last one
 * @param {Uint8ClampedArray} output RGBA of size × size pixels; its rows from..to are written
 */
export function resizeRows(band, bandTop, taps, side, from, to, output) {
  const size = taps.low.length;
  for (let y = from; y < to; y++) {
    const upper = (taps.low[y] - bandTop) * side;
    const lower = (taps.high[y] - bandTop) * side;
    const down = taps.weight[y];
    for (let x = 0; x < size; x++) {
      const across = taps.weight[x];
      const a = (upper + taps.low[x]) * 4;
      const b = (upper + taps.high[x]) * 4;
      const c = (lower + taps.low[x]) * 4;
      const d = (lower + taps.high[x]) * 4;
      const o = (y * size + x) * 4;
      for (let channel = 0; channel < 3; channel++) {
        const top = (1 - across) * band[a + channel] + across * band[b + channel];
        const bottom = (1 - across) * band[c + channel] + across * band[d + channel];
        output[o + channel] = Math.floor((1 - down) * top + down * bottom + 0.5);
      }
      output[o + 3] = 255;
    }
  }
}

/**
 * Bilinear resize of a whole square.
 * @param {Uint8Array|Uint8ClampedArray} rgba side × side pixels
 * @param {number} side
 * @param {number} size
 * @returns {Uint8ClampedArray} RGBA of size × size pixels, opaque
 */
export function resizeLinear(rgba, side, size) {
  if (rgba.length !== side * side * 4) {
    throw new RangeError(`expected ${side} × ${side} RGBA pixels (${side * side * 4} bytes), got ${rgba.length} bytes`);
  }
  const output = new Uint8ClampedArray(size * size * 4);
  resizeRows(rgba, 0, linearTaps(side, size), side, 0, size, output);
  return output;
}

/**
 * From a photo to the JPEG that is sent.
 * @param {Blob} photo a file that the user chose or took
 * @param {{target_size: number, jpeg_quality: number}} [contract]
 * @returns {Promise<Blob>} image/jpeg
 * @throws {PhotoError}
 */
export async function preparePhoto(photo, contract = CONTRACT) {
  const pixels = await prepareSquare(photo, contract.target_size);
  return encodeJpeg(pixels, contract.target_size, contract.jpeg_quality);
}

/**
 * Everything before the JPEG: upright, cropped, resized.
 * @param {Blob} photo
 * @param {number} [size]
 * @returns {Promise<Uint8ClampedArray>} RGBA of size × size pixels, opaque
 * @throws {PhotoError}
 */
export async function prepareSquare(photo, size = CONTRACT.target_size) {
  refuseDisturbedPixels();
  const bitmap = await decode(photo);
  try {
    const { left, top, side } = centreCrop(bitmap.width, bitmap.height);
    const taps = linearTaps(side, size);
    const output = new Uint8ClampedArray(size * size * 4);
    const rowsAtOnce = Math.max(1, Math.floor((BAND_PIXELS / side) * (size / side)) - 1);
    const read = pixelReader(bitmap);
    for (let from = 0; from < size; from += rowsAtOnce) {
      const to = Math.min(from + rowsAtOnce, size);
      const first = taps.low[from];
      const band = await read(left, top + first, side, taps.high[to - 1] - first + 1);
      resizeRows(band, first, taps, side, from, to, output);
    }
    return output;
  } finally {
    bitmap.close();
  }
}

/**
 * Whether the end of a JPEG, PNG or WebP is missing. Some browsers fill the missing part with grey or nothing and are
 * silent about it. What follows the end is free: phones append the film of a motion photo there.
 * @param {Uint8Array} file
 * @returns {boolean} false also for other files
 */
export function isCutOff(file) {
  if (isPng(file)) return !pngChunks(file).some(({ type, end }) => type === "IEND" && end <= file.length);
  if (isWebp(file)) return 8 + viewOf(file).getUint32(4, true) > file.length;
  if (!isJpeg(file)) return false;
  const header = jpegHeader(file);
  let i = header.length > 0 ? header[header.length - 1].end : 2; // a thumbnail in the header has an end marker too
  for (; i + 1 < file.length; i++) {
    if (file[i] === 0xff && file[i + 1] === 0xd9) return false;
  }
  return true;
}

/**
 * A JPEG, PNG or WebP without its colour profile, so that the values that are stored are the values that are read. To
 * ask for that with `colorSpaceConversion` is not enough: WebKit converts all the same, and every iPhone's photo has a
 * profile (Display P3).
 * @param {Uint8Array} file
 * @returns {Uint8Array} other files as they are
 */
export function withoutColourProfile(file) {
  if (isJpeg(file)) {
    return withoutParts(file, jpegHeader(file), ({ marker, start }) => {
      return marker === 0xe2 && ascii(file, start + 4, 11) === "ICC_PROFILE";
    });
  }
  if (isPng(file)) return withoutParts(file, pngChunks(file), ({ type }) => COLOUR_CHUNKS.includes(type));
  if (!isWebp(file)) return file;
  const output = withoutParts(file, webpChunks(file), ({ type }) => type === "ICCP").slice();
  viewOf(output).setUint32(4, viewOf(file).getUint32(4, true) - (file.length - output.length), true);
  if (ascii(output, 12, 4) === "VP8X") output[20] &= ~0x20; // "has a profile"
  return output;
}

/**
 * A JPEG without EXIF, colour profile and comments, which browsers add of their own accord. The pixels stay.
 * @param {Uint8Array} file
 * @returns {Uint8Array}
 */
export function withoutMetadata(file) {
  return withoutParts(file, jpegHeader(file), ({ marker }) => (marker >= 0xe1 && marker <= 0xef) || marker === 0xfe);
}

/**
 * @param {Uint8Array} file
 * @param {{start: number, end: number}[]} parts in the order of the file
 * @param {(part: any) => boolean} goes whether a part is left out
 * @returns {Uint8Array}
 */
function withoutParts(file, parts, goes) {
  const output = new Uint8Array(file.length);
  let read = 0;
  let written = 0;
  const keepUpTo = (position) => {
    output.set(file.subarray(read, position), written);
    written += Math.max(0, Math.min(position, file.length) - read);
  };
  for (const part of parts.filter(goes)) {
    keepUpTo(part.start);
    read = Math.min(part.end, file.length);
  }
  keepUpTo(file.length);
  return output.subarray(0, written);
}

function isJpeg(file) {
  return file[0] === 0xff && file[1] === 0xd8;
}

function isPng(file) {
  return ascii(file, 0, 8) === "\x89PNG\r\n\x1a\n";
}

function isWebp(file) {
  return file.length >= 16 && ascii(file, 0, 4) === "RIFF" && ascii(file, 8, 4) === "WEBP";
}

function ascii(file, start, length) {
  return String.fromCharCode(...file.subarray(start, start + length));
}

function viewOf(file) {
  return new DataView(file.buffer, file.byteOffset, file.byteLength);
}

/** The segments of a JPEG before its pixels (before the start of scan, 0xda). */
function jpegHeader(file) {
  const segments = [];
  let start = 2;
  while (start + 3 < file.length && file[start] === 0xff && file[start + 1] !== 0xda) {
    const marker = file[start + 1];
    const end = marker === 0xff ? start + 1 : start + 2 + file[start + 2] * 256 + file[start + 3]; // 0xff fills up
    segments.push({ marker, start, end });
    start = end;
  }
  return segments;
}

/** The chunks of a PNG; the last one of a file that is cut off reaches beyond its end. */
function pngChunks(file) {
  const view = viewOf(file);
  const chunks = [];
  for (let start = 8; start + 8 <= file.length; start = chunks[chunks.length - 1].end) {
    chunks.push({ type: ascii(file, start + 4, 4), start, end: start + 12 + view.getUint32(start) });
  }
  return chunks;
}

/** The chunks of a WebP. */
function webpChunks(file) {
  const view = viewOf(file);
  const chunks = [];
  for (let start = 12; start + 8 <= file.length; start = chunks[chunks.length - 1].end) {
    const length = view.getUint32(start + 4, true);
    chunks.push({ type: ascii(file, start, 4), start, end: start + 8 + length + (length % 2) });
  }
  return chunks;
}

/** @param {Blob} photo @returns {Promise<ImageBitmap>} upright, without colour conversion */
async function decode(photo) {
  if (typeof createImageBitmap !== "function") {
    throw new PhotoError("unsupported_browser", "This browser cannot decode pictures (createImageBitmap is missing).");
  }
  if (photo.size === 0) throw new PhotoError("empty", "The file is empty. Choose another one or take the photo again.");
  try {
    const file = new Uint8Array(await photo.arrayBuffer());
    if (isCutOff(file)) {
      throw new PhotoError("truncated", "The picture is cut off: its end is missing. Copy it again or take it again.");
    }
    if (ascii(file, 4, 4) === "ftyp") throw new Error("HEIC or AVIF"); // WebKit opens them, and converts their colours
    return await createImageBitmap(new Blob([withoutColourProfile(file)], { type: photo.type }), {
      imageOrientation: "from-image",
      premultiplyAlpha: "none",
      colorSpaceConversion: "none",
    });
  } catch (cause) {
    if (cause instanceof PhotoError) throw cause;
    throw new PhotoError(
      "undecodable",
      "The file cannot be decoded as a picture (JPEG, PNG and WebP can), or it is too large for this device.",
      cause,
    );
  }
}

/**
 * Some browsers disturb what is read from a canvas, against tracking: by a level here and there, which does no harm, or
 * so that nothing of the photo is left (Firefox with `privacy.resistFingerprinting`).
 * @throws {PhotoError}
 */
function refuseDisturbedPixels() {
  const side = 16;
  const pixels = Uint8ClampedArray.from({ length: side * side * 4 }, (_, i) => (i % 4 === 3 ? 255 : (i * 37) % 256));
  const context = newCanvas(side, side).getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  if (context === null) return; // pixelReader says so
  context.putImageData(new ImageData(pixels, side, side), 0, 0);
  const read = context.getImageData(0, 0, side, side).data;
  if (read.some((value, i) => Math.abs(value - pixels[i]) > SAME_LEVELS)) {
    throw new PhotoError(
      "disturbed_pixels",
      "This browser changes the pixels of pictures, against tracking. Allow this page to read the canvas, or use " +
        "another browser.",
    );
  }
}

/**
 * A function that reads a rectangle of a picture as RGBA. A 2D canvas loses the colour of transparent pixels, so a
 * picture that has some is read through WebGL, which keeps them.
 * @param {ImageBitmap} bitmap
 * @returns {(left: number, top: number, width: number, height: number) => Promise<Uint8ClampedArray|Uint8Array>}
 */
function pixelReader(bitmap) {
  let context = null;
  return async (left, top, width, height) => {
    if (context === null || context.canvas.width !== width || context.canvas.height !== height) {
      context = newCanvas(width, height).getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
    }
    if (context === null) {
      throw new PhotoError("unsupported_browser", "This browser gives no canvas to read pixels with.");
    }
    context.clearRect(0, 0, width, height);
    context.drawImage(bitmap, left, top, width, height, 0, 0, width, height); // 1 : 1, so nothing is scaled here
    const rgba = context.getImageData(0, 0, width, height).data;
    return isOpaque(rgba) ? rgba : readThroughWebGL(bitmap, left, top, width, height);
  };
}

function isOpaque(rgba) {
  for (let i = 3; i < rgba.length; i += 4) if (rgba[i] !== 255) return false;
  return true;
}

function readThroughWebGL(bitmap, left, top, width, height) {
  const gl = newCanvas(1, 1).getContext("webgl");
  if (gl === null || Math.max(bitmap.width, bitmap.height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
    throw new PhotoError("unsupported_browser", "This browser cannot read this transparent picture. Save it as JPEG.");
  }
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  const rgba = new Uint8Array(width * height * 4);
  gl.readPixels(left, top, width, height, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
  const failed = gl.getError() !== gl.NO_ERROR;
  gl.getExtension("WEBGL_lose_context")?.loseContext(); // browsers allow a handful of contexts only
  if (failed) {
    throw new PhotoError("unsupported_browser", "This browser failed to read a transparent picture. Save it as JPEG.");
  }
  return rgba;
}

async function encodeJpeg(rgba, size, quality) {
  const canvas = newCanvas(size, size);
  canvas.getContext("2d", { colorSpace: "srgb" }).putImageData(new ImageData(rgba, size, size), 0, 0);
  const options = { type: "image/jpeg", quality: quality / 100 };
  const jpeg = canvas.convertToBlob
    ? await canvas.convertToBlob(options)
    : await new Promise((resolve) => canvas.toBlob(resolve, options.type, options.quality));
  if (jpeg?.type !== "image/jpeg") {
    throw new PhotoError("encoding_failed", "This browser could not write the picture as JPEG. Try another browser.");
  }
  return new Blob([withoutMetadata(new Uint8Array(await jpeg.arrayBuffer()))], { type: "image/jpeg" });
}

function newCanvas(width, height) {
  if (typeof OffscreenCanvas === "function") return new OffscreenCanvas(width, height);
  return Object.assign(document.createElement("canvas"), { width, height });
}
