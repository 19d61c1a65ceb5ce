/**
 * What a photo's bytes say of themselves, before a browser opens it: format, whether its end is there, orientation; and
 * the file with nothing but its picture. Browsers differ in what they do with the rest: WebKit converts the colours of
 * every profile although it is told not to, none turns a WebP, Firefox opens a PNG that is damaged.
 *
 * A part of the browser client (pillsnap_client.js). Pure functions of bytes, which also run in Node.js; they read what
 * the server's `pillsnap.core.image_header` reads, and skip what that skips.
 */

/** Segments or chunks that are walked through. */
const MOST_PARTS = 100_000;
const PNG_NEEDED = ["IHDR", "PLTE", "tRNS", "IDAT", "IEND"];
const HEIF_BRANDS = ["heic", "heix", "hevc", "hevx", "heim", "heis", "mif1", "msf1", "avif", "avis"];
const WEBP_METADATA = ["ICCP", "EXIF", "XMP "];
const WEBP_METADATA_FLAGS = 0x20 | 0x08 | 0x04; // of VP8X: a profile, EXIF, XMP
const JPEG_LS = 0xf7;
const ADOBE = 0xee; // says how the channels of a JPEG are to be read

/**
 * @param {Uint8Array} file
 * @returns {"jpeg"|"png"|"webp"|null} by content; null for all other files
 */
export function formatOf(file) {
  if (file[0] === 0xff && file[1] === 0xd8) return "jpeg";
  if (ascii(file, 0, 8) === "\x89PNG\r\n\x1a\n") return "png";
  return file.length >= 12 && ascii(file, 0, 4) === "RIFF" && ascii(file, 8, 4) === "WEBP" ? "webp" : null;
}

/**
 * Whether it is a HEIC or an AVIF, which phones write and most browsers do not open.
 * @param {Uint8Array} file
 * @returns {boolean}
 */
export function isHeif(file) {
  if (ascii(file, 4, 4) !== "ftyp") return false;
  const brands = [ascii(file, 8, 4)];
  for (let i = 16; i + 4 <= Math.min(file.length, file[3]); i += 4) brands.push(ascii(file, i, 4));
  return brands.some((brand) => HEIF_BRANDS.includes(brand));
}

/**
 * What kind of JPEG it is, as far as the server refuses it by its header (its code).
 * @param {Uint8Array} file
 * @returns {"rare_jpeg"|"no_pixel_data"|null} null for all that is decoded, and for other files
 */
export function jpegRefusal(file) {
  if (formatOf(file) !== "jpeg") return null;
  const parts = jpegHeader(file);
  const frame = parts.find(({ marker }) => isStartOfFrame(marker));
  const scan = parts.at(-1);
  if (!frame || frame.start + 9 >= file.length) return null;
  const { marker, start } = frame;
  const bits = file[start + 4];
  const deep = bits !== 8 && bits >= 2 && bits <= 16; // any other number is damage
  const [height, width] = [viewOf(file).getUint16(start + 5), viewOf(file).getUint16(start + 7)];
  const greyLossless = marker % 4 === 3 && file[start + 9] === 1;
  const hierarchical = marker % 8 >= 5; // or JPEG-LS
  if (deep || hierarchical || greyLossless) return "rare_jpeg";
  if (scan.marker !== 0xda) return null;
  if (height === 0 && markerBehind(file, scan.end) === 0xdc) return "rare_jpeg";
  const end = endOfImage(file, scan.end);
  const blocks = Math.ceil(width / 8) * Math.ceil(height / 8); // each takes a bit at the least in Huffman's codes
  return end >= 0 && 8 * (end - scan.end) < (marker < 0xc8 ? blocks : 1) ? "no_pixel_data" : null;
}

/**
 * Whether the end of a JPEG, PNG or WebP is missing. Some browsers fill the missing part with grey or nothing and are
 * silent about it. What follows the end is free: phones append the film of a motion photo there.
 * @param {Uint8Array} file
 * @returns {boolean} false also for other files
 */
export function isCutOff(file) {
  switch (formatOf(file)) {
    case "png": {
      const last = pngChunks(file).pop();
      return last?.type !== "IEND" || last.end > file.length;
    }
    case "webp":
      return webpEnd(file) > file.length;
    case "jpeg":
      return !hasEndOfImage(file);
    default:
      return false;
  }
}

/**
 * Whether a PNG's checksums are wrong. (JPEG and WebP have none.)
 * @param {Uint8Array} file
 * @returns {boolean}
 */
export function isDamaged(file) {
  if (formatOf(file) !== "png") return false;
  const needed = pngChunks(file).filter(({ type, end }) => PNG_NEEDED.includes(type) && end <= file.length);
  return needed.some(({ start, end }) => crc32(file.subarray(start + 4, end - 4)) !== viewOf(file).getUint32(end - 4));
}

/**
 * The EXIF orientation of a JPEG, PNG (eXIf) or WebP.
 * @param {Uint8Array} file
 * @returns {number} 1 to 8; 1 where there is none, or where it is damaged
 */
export function orientationOf(file) {
  switch (formatOf(file)) {
    case "jpeg": {
      const exif = jpegHeader(file).find((part) => part.marker === 0xe1 && isExif(file, part.start + 4));
      return exif ? tiffOrientation(file.subarray(exif.start + 10, exif.end)) : 1;
    }
    case "png": {
      const exif = lastOf(pngChunks(file), "eXIf");
      return exif ? tiffOrientation(file.subarray(exif.start + 8, exif.end - 4)) : 1;
    }
    case "webp": {
      const chunks = webpChunks(file);
      const exif = lastOf(chunks, "EXIF");
      if (!exif || !chunks.some(({ type }) => type === "VP8X")) return 1;
      const start = exif.start + 8;
      return tiffOrientation(file.subarray(isExif(file, start) ? start + 6 : start, exif.end));
    }
    default:
      return 1;
  }
}

/**
 * A JPEG, PNG or WebP with its picture alone: no colour profile, EXIF, animation (PNG) or text, so that every browser
 * gives the values that are stored, as they lie there.
 * @param {Uint8Array} file
 * @returns {Uint8Array} other files as they are
 */
export function withPictureAlone(file) {
  switch (formatOf(file)) {
    case "jpeg":
      return withoutParts(file, jpegHeader(file), ({ marker }) => isMetadata(marker) && marker !== ADOBE);
    case "png":
      return withoutParts(file, pngChunks(file), ({ type }) => !PNG_NEEDED.includes(type));
    case "webp": {
      const chunks = webpChunks(file);
      const output = withoutParts(file, chunks, ({ type }) => WEBP_METADATA.includes(type));
      if (output === file) return file;
      viewOf(output).setUint32(4, viewOf(file).getUint32(4, true) - (file.length - output.length), true);
      if (chunks[0].type === "VP8X") output[20] &= ~WEBP_METADATA_FLAGS;
      return output;
    }
    default:
      return file;
  }
}

/**
 * A JPEG without EXIF, colour profile and comments, which browsers add of their own accord. The pixels stay.
 * @param {Uint8Array} file
 * @returns {Uint8Array}
 */
export function withoutMetadata(file) {
  return withoutParts(file, jpegHeader(file), ({ marker }) => isMetadata(marker));
}

function lastOf(chunks, wanted) {
  return chunks.filter(({ type }) => type === wanted).pop();
}

function isMetadata(marker) {
  return (marker >= 0xe1 && marker <= 0xef) || marker === 0xfe;
}

/**
 * @param {Uint8Array} file
 * @param {{start: number, end: number}[]} parts in the order of the file
 * @param {(part: any) => boolean} goes whether a part is left out
 * @returns {Uint8Array} `file` itself where nothing goes
 */
function withoutParts(file, parts, goes) {
  const gone = parts.filter(goes);
  if (gone.length === 0) return file;
  const output = new Uint8Array(file.length);
  let read = 0;
  let written = 0;
  for (const { start, end } of [...gone, { start: file.length, end: file.length }]) {
    output.set(file.subarray(read, start), written);
    written += start - read;
    read = Math.min(end, file.length);
  }
  return output.subarray(0, written);
}

/**
 * The segments of a JPEG up to its pixels (the start of scan, which is the last), but for markers without a length.
 * Bytes between two segments are skipped, as libjpeg does.
 */
function jpegHeader(file) {
  const segments = [];
  let start = 2;
  while (start + 3 < file.length && segments.length < MOST_PARTS) {
    const marker = file[start + 1];
    if (file[start] !== 0xff || marker === 0x00 || marker === 0xff) {
      start += 1;
    } else if (marker === 0x01 || (marker >= 0xd0 && marker <= 0xd8)) {
      start += 2;
    } else if (marker === 0xd9) {
      break;
    } else {
      const end = start + 2 + Math.max(2, file[start + 2] * 256 + file[start + 3]);
      segments.push({ marker, start, end });
      if (marker === 0xda) break;
      start = end;
    }
  }
  return segments;
}

/** Whether the end marker of a JPEG is there; behind its header, as a thumbnail in that has an end marker too. */
function hasEndOfImage(file) {
  const scan = jpegHeader(file).pop();
  return scan?.marker === 0xda && endOfImage(file, scan.end) >= 0;
}

/** Where the end marker stands behind the header; -1 where there is none. */
function endOfImage(file, from) {
  for (let i = from; i + 1 < file.length; i++) {
    if (file[i] === 0xff && file[i + 1] === 0xd9) return i;
  }
  return -1;
}

/** The marker that ends a scan, of which restarts are none. */
function markerBehind(file, from) {
  for (let i = from; i + 1 < file.length; i++) {
    const next = file[i + 1];
    if (file[i] === 0xff && next !== 0x00 && next !== 0xff && !(next >= 0xd0 && next <= 0xd7)) return next;
  }
  return null;
}

function isStartOfFrame(marker) {
  return (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) || marker === JPEG_LS;
}

/** The chunks of a PNG up to its end; the last one of a file that is cut off may reach beyond the file. */
function pngChunks(file) {
  const view = viewOf(file);
  const chunks = [];
  for (let start = 8, end; start + 8 <= file.length && chunks.length < MOST_PARTS; start = end) {
    const type = ascii(file, start + 4, 4);
    end = start + 12 + view.getUint32(start);
    chunks.push({ type, start, end });
    if (type === "IEND") break;
  }
  return chunks;
}

/** The chunks of a WebP. */
function webpChunks(file) {
  const view = viewOf(file);
  const last = Math.min(file.length, webpEnd(file));
  const chunks = [];
  for (let start = 12, end; start + 8 <= last && chunks.length < MOST_PARTS; start = end) {
    const length = view.getUint32(start + 4, true);
    end = start + 8 + length + (length % 2);
    chunks.push({ type: ascii(file, start, 4), start, end });
  }
  return chunks;
}

function webpEnd(file) {
  return 8 + viewOf(file).getUint32(4, true);
}

function isExif(file, start) {
  return ascii(file, start, 6) === "Exif\0\0";
}

/** Tag 0x0112 of the first directory. */
function tiffOrientation(tiff) {
  const little = ascii(tiff, 0, 4) === "II*\0";
  if (!little && ascii(tiff, 0, 4) !== "MM\0*") return 1;
  const view = viewOf(tiff);
  try {
    const directory = view.getUint32(4, little);
    for (let i = 0; i < view.getUint16(directory, little); i++) {
      const entry = directory + 2 + 12 * i;
      const [tag, kind] = [view.getUint16(entry, little), view.getUint16(entry + 2, little)];
      if (tag === 0x0112 && (kind === 3 || kind === 4) && view.getUint32(entry + 4, little) === 1) {
        const value = kind === 3 ? view.getUint16(entry + 8, little) : view.getUint32(entry + 8, little);
        return value >= 1 && value <= 8 ? value : 1;
      }
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // beyond the end
  }
  return 1;
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

/** ISO 3309, as in PNG. */
function crc32(bytes) {
  let crc = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) crc = CRC_TABLE[(crc ^ bytes[i]) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

function ascii(file, start, length) {
  return String.fromCharCode(...file.subarray(start, start + length));
}

function viewOf(file) {
  return new DataView(file.buffer, file.byteOffset, file.byteLength);
}
