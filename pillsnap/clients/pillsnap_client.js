/**
 * The browser client: makes of any photo the small JPEG that PillSnap's server expects.
 *
 *   import { preparePhoto } from "./pillsnap_client.js";
 *   const jpeg = await preparePhoto(fileInput.files[0]);   // a Blob of 512 × 512 pixels
 *
 * It carries out contract.json (beside this file), and the golden vectors hold it to that. The resize is written out
 * here because the scaling of a canvas differs between browsers. An ES module without dependencies; the pure functions
 * (centreCrop, linearTaps, resizeLinear, resizeRows, isCutOff, withoutMetadata) also run in Node.js.
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

/** A photo that cannot be prepared. `code` is for programs, `message` for people. */
export class PhotoError extends Error {
  /**
   * @param {"empty"|"truncated"|"undecodable"|"unsupported_browser"|"encoding_failed"} code
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
 * Whether the end of a JPEG is missing. Some browsers fill the missing part with grey and say nothing.
 * What follows the end marker is free: phones append the film of a motion photo there.
 * @param {Uint8Array} file
 * @returns {boolean} false also for what is no JPEG
 */
export function isCutOff(file) {
  if (!isJpeg(file)) return false;
  const header = headerSegments(file);
  let i = header.length > 0 ? header[header.length - 1].end : 2; // a thumbnail in the header has an end marker too
  for (; i + 1 < file.length; i++) {
    if (file[i] === 0xff && file[i + 1] === 0xd9) return false;
  }
  return true;
}

/**
 * A JPEG without EXIF, colour profile and comments, which browsers add of their own accord. The pixels stay.
 * @param {Uint8Array} file
 * @returns {Uint8Array}
 */
export function withoutMetadata(file) {
  const isMetadata = (marker) => (marker >= 0xe1 && marker <= 0xef) || marker === 0xfe;
  const header = headerSegments(file);
  const parts = header.filter(({ marker }) => !isMetadata(marker)).map(({ start, end }) => file.subarray(start, end));
  parts.unshift(file.subarray(0, 2));
  parts.push(file.subarray(header.length > 0 ? header[header.length - 1].end : 2));
  const output = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let position = 0;
  for (const part of parts) {
    output.set(part, position);
    position += part.length;
  }
  return output;
}

function isJpeg(file) {
  return file[0] === 0xff && file[1] === 0xd8;
}

/** The segments of a JPEG before its pixels (before the start of scan, 0xda). */
function headerSegments(file) {
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

/** @param {Blob} photo @returns {Promise<ImageBitmap>} upright, without colour conversion */
async function decode(photo) {
  if (typeof createImageBitmap !== "function") {
    throw new PhotoError("unsupported_browser", "This browser cannot decode pictures (createImageBitmap is missing).");
  }
  if (photo.size === 0) throw new PhotoError("empty", "The file is empty. Choose another one or take the photo again.");
  try {
    if (isCutOff(new Uint8Array(await photo.arrayBuffer()))) {
      throw new PhotoError("truncated", "The picture is cut off: its end is missing. Copy it again or take it again.");
    }
    return await createImageBitmap(photo, {
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

async function readThroughWebGL(bitmap, left, top, width, height) {
  const gl = newCanvas(1, 1).getContext("webgl");
  if (gl === null || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
    throw new PhotoError("unsupported_browser", "This browser cannot read this transparent picture. Save it as JPEG.");
  }
  const part = await createImageBitmap(bitmap, left, top, width, height, {
    premultiplyAlpha: "none",
    colorSpaceConversion: "none",
  });
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, part);
  part.close();
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  const rgba = new Uint8Array(width * height * 4);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
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
