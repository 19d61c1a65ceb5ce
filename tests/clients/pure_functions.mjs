// Runs the pure functions of the browser client in Node.js: jobs as JSON on the standard input, answers as JSON on the
// standard output. Bytes travel as base64.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const client = await import(pathToFileURL(`${process.argv[2]}/pillsnap_client.js`));
const photo = await import(pathToFileURL(`${process.argv[2]}/photo_file.js`));
const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));
const text = (array) => Buffer.from(array).toString("base64");

/** The same resize from bands of the source, as large photos are read. */
function resizeInBands(rgba, side, size, rowsAtOnce) {
  const taps = client.linearTaps(side, size);
  const output = new Uint8ClampedArray(size * size * 4);
  for (let from = 0; from < size; from += rowsAtOnce) {
    const to = Math.min(from + rowsAtOnce, size);
    const first = taps.low[from];
    const band = rgba.slice(first * side * 4, (taps.high[to - 1] + 1) * side * 4);
    client.resizeRows(band, first, taps, side, from, to, output);
  }
  return output;
}

const run = {
  config: () => client.CONTRACT,
  crop: ({ width, height }) => client.centreCrop(width, height),
  resize: ({ rgba, side, size }) => text(client.resizeLinear(bytes(rgba), side, size)),
  bands: ({ rgba, side, size, rows }) => text(resizeInBands(bytes(rgba), side, size, rows)),
  stored_crop: ({ width, height, orientation }) => client.storedCrop(width, height, orientation),
  turn: ({ rgba, size, orientation }) => text(client.turnUpright(new Uint8ClampedArray(bytes(rgba)), size, orientation)),
  format: ({ file }) => photo.formatOf(bytes(file)),
  heif: ({ file }) => photo.isHeif(bytes(file)),
  jpeg_refusal: ({ file }) => photo.jpegRefusal(bytes(file)),
  cut: ({ file }) => photo.isCutOff(bytes(file)),
  damaged: ({ file }) => photo.isDamaged(bytes(file)),
  orientation: ({ file }) => photo.orientationOf(bytes(file)),
  alone: ({ file }) => text(photo.withPictureAlone(bytes(file))),
  strip: ({ file }) => text(photo.withoutMetadata(bytes(file))),
  refuse: ({ rgba, side, size }) => {
    try {
      client.resizeLinear(bytes(rgba), side, size);
      return null;
    } catch (error) {
      return `${error.name}: ${error.message}`;
    }
  },
};

const jobs = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(jobs.map((job) => run[job.do](job))));
