/**
 * The browser client: makes of any photo the small JPEG that PillSnap's server expects.
 *
 *   import { preparePhoto } from "./pillsnap_client.js";
 *   const jpeg = await preparePhoto(fileInput.files[0]);   // a Blob of 512 × 512 pixels
 *
 * It carries out contract.json (beside this file), and the golden vectors hold it to that. The resize is written out
 * here because the scaling of a canvas differs between browsers, and so is turning upright. An ES module without
 * dependencies but photo_file.js beside it; the pure functions (centreCrop, storedCrop, linearTaps, resizeLinear,
 * resizeRows, turnUpright) also run in Node.js.
 */

import {
  formatOf,
  isCutOff,
  isDamaged,
  isHeif,
  jpegRefusal,
  orientationOf,
  withPictureAlone,
  withoutMetadata,
} from "./photo_file.js";

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

/** A photo that cannot be prepared. `code` is for programs, `message` for people. */
export class PhotoError extends Error {
  /**
   * @param {"empty"|"unsupported_format"|"heic"|"rare_jpeg"|"truncated"|"no_pixel_data"|"undecodable"
   *   |"unsupported_browser"|"disturbed_pixels"|"encoding_failed"} code
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
 * Where the centred square of the upright picture lies in the picture as it is stored.
 * @param {number} width as stored
 * @param {number} height as stored
 * @param {number} orientation of EXIF, 1 to 8
 * @returns {{left: number, top: number, side: number}}
 */
export function storedCrop(width, height, orientation) {
  const { left, top, side } = orientation < 5 ? centreCrop(width, height) : transposed(centreCrop(height, width));
  const { flipX, flipY } = flips(orientation);
  return { left: flipX ? width - side - left : left, top: flipY ? height - side - top : top, side };
}

function transposed({ left, top, side }) {
  return { left: top, top: left, side };
}

/** How the stored picture is read to be upright: mirrored along its own axes, and transposed from 5 on. */
function flips(orientation) {
  return { flipX: [2, 3, 7, 8].includes(orientation), flipY: [3, 4, 6, 7].includes(orientation) };
}

/**
 * @param {Uint8ClampedArray} rgba size × size pixels as stored
 * @param {number} size
 * @param {number} orientation of EXIF, 1 to 8
 * @returns {Uint8ClampedArray} upright
 */
export function turnUpright(rgba, size, orientation) {
  if (orientation === 1) return rgba;
  const { flipX, flipY } = flips(orientation);
  const stored = new Uint32Array(rgba.buffer, rgba.byteOffset, size * size);
  const output = new Uint8ClampedArray(rgba.length);
  const pixels = new Uint32Array(output.buffer);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const [across, down] = orientation < 5 ? [x, y] : [y, x];
      pixels[y * size + x] = stored[(flipY ? size - 1 - down : down) * size + (flipX ? size - 1 - across : across)];
    }
  }
  return output;
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
  const { bitmap, format, orientation } = await decode(photo);
  const reader = pixelReader(bitmap, format);
  try {
    const { left, top, side } = storedCrop(bitmap.width, bitmap.height, orientation);
    const taps = linearTaps(side, size);
    const output = new Uint8ClampedArray(size * size * 4);
    const rowsAtOnce = Math.max(1, Math.floor((BAND_PIXELS / side) * (size / side)) - 1);
    for (let from = 0; from < size; from += rowsAtOnce) {
      const to = Math.min(from + rowsAtOnce, size);
      const first = taps.low[from];
      const band = reader.read(left, top + first, side, taps.high[to - 1] - first + 1);
      resizeRows(band, first, taps, side, from, to, output);
    }
    return turnUpright(output, size, orientation);
  } finally {
    reader.close();
    bitmap.close();
  }
}

/** @param {Blob} photo @returns {Promise<{bitmap: ImageBitmap, format: string, orientation: number}>} as stored */
async function decode(photo) {
  if (typeof createImageBitmap !== "function") {
    throw new PhotoError("unsupported_browser", "This browser cannot decode pictures (createImageBitmap is missing).");
  }
  const file = await bytesOf(photo);
  const format = formatOf(file);
  if (file.length === 0) throw new PhotoError("empty", "The file is empty. Choose another one or take the photo again.");
  if (isHeif(file)) {
    throw new PhotoError("heic", "This is a HEIC or AVIF photo. Set the phone to JPEG (iPhone: Most Compatible).");
  }
  if (format === null) {
    throw new PhotoError("unsupported_format", "The file is no JPEG, PNG or WebP. Save the photo as JPEG.");
  }
  const refusal = jpegRefusal(file);
  if (refusal === "rare_jpeg") {
    throw new PhotoError(refusal, "A JPEG of a rare kind (12 bits, lossless in grey …). Save it as a usual JPEG.");
  }
  if (isCutOff(file)) {
    throw new PhotoError("truncated", "The picture is cut off: its end is missing. Copy it again or take it again.");
  }
  if (refusal === "no_pixel_data") {
    throw new PhotoError(refusal, "The file is a JPEG's header without its pixels. Copy it again or take it again.");
  }
  if (isDamaged(file)) throw undecodable(new Error("a checksum is wrong"));
  const orientation = orientationOf(file);
  const options = { premultiplyAlpha: "none", colorSpaceConversion: "none" };
  try {
    const bitmap = await createImageBitmap(new Blob([withPictureAlone(file)], { type: `image/${format}` }), options);
    return { bitmap, format, orientation };
  } catch (cause) {
    throw undecodable(cause);
  }
}

async function bytesOf(photo) {
  try {
    return new Uint8Array(await photo.arrayBuffer());
  } catch (cause) {
    throw undecodable(cause); // gone from the disk, or not allowed
  }
}

function undecodable(cause) {
  return new PhotoError("undecodable", "The picture is damaged, or too large for this device. Take it again.", cause);
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
 * Reads rectangles of a picture as RGBA. A 2D canvas loses the colour of transparent pixels, so a picture that has some
 * is read through WebGL, which keeps them.
 * @param {ImageBitmap} bitmap
 * @param {string} format of the file
 * @returns {{read: (left: number, top: number, width: number, height: number) => Uint8ClampedArray|Uint8Array,
 *   close: () => void}}
 */
function pixelReader(bitmap, format) {
  let context = null;
  let texture = null;
  function read(left, top, width, height) {
    if (texture !== null) return texture.read(left, top, width, height);
    if (context === null || context.canvas.width !== width || context.canvas.height !== height) {
      context = newCanvas(width, height).getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
    }
    if (context === null) {
      throw new PhotoError("unsupported_browser", "This browser gives no canvas to read pixels with.");
    }
    context.clearRect(0, 0, width, height);
    context.drawImage(bitmap, left, top, width, height, 0, 0, width, height); // 1 : 1, so nothing is scaled here
    const rgba = context.getImageData(0, 0, width, height).data;
    if (isOpaque(rgba)) return rgba;
    if (format === "jpeg") throw undecodable(new Error("a part was not decoded"));
    texture = textureOf(bitmap);
    return texture.read(left, top, width, height);
  }
  return { read, close: () => texture?.close() };
}

function isOpaque(rgba) {
  for (let i = 3; i < rgba.length; i += 4) if (rgba[i] !== 255) return false;
  return true;
}

/** A whole picture in WebGL: a part of it is not to be cut out before, as Firefox multiplies it with its alpha then. */
function textureOf(bitmap) {
  const gl = newCanvas(1, 1).getContext("webgl");
  if (gl === null || Math.max(bitmap.width, bitmap.height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
    throw new PhotoError("unsupported_browser", "This browser cannot read this transparent picture. Save it as JPEG.");
  }
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  function read(left, top, width, height) {
    const rgba = new Uint8Array(width * height * 4);
    gl.readPixels(left, top, width, height, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
    if (gl.getError() === gl.NO_ERROR) return rgba;
    throw new PhotoError("unsupported_browser", "This browser failed to read a transparent picture. Save it as JPEG.");
  }
  return { read, close: () => gl.getExtension("WEBGL_lose_context")?.loseContext() }; // browsers allow a handful only
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
