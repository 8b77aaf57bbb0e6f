// Reads the file of a subset in the format rankmajor/1 (docs/reference/format.md): an ES module for browsers and Node,
// without any dependency.
//
//     const subset = readSubset(await (await fetch(url)).arrayBuffer());
//     await verifySubset(subset, manifest);          // manifest: GET /v1/sets/{name}/manifest
//     subset.tiles[subset.offset(rank, label, tile, channel, row, column)]   // 0..255

const HEADER_STEP = 4096;
const LARGEST = 2 ** 31 - 1; // of a whole number
const LARGEST_FILE = 2 ** 48; // bytes of subset N without its header
const LARGEST_HEADER = 1e8; // bytes of the JSON
const LARGEST_MOMENT = 1e6; // of a mean; a deviation is 1e-6 or more

export class FormatError extends Error {}

const check = (right, what) => {
  if (!right) throw new FormatError(`${what}: the file is damaged or no rankmajor/1 file, fetch it again`);
};

const whole = (text, most) => {
  check(typeof text === "string" && /^[1-9][0-9]{0,9}$/.test(text) && Number(text) <= most, "a number is outside its limits");
  return Number(text);
};

const ascii = (text) =>
  text.replace(/[\u007f-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);

const isName = (name) => typeof name === "string" && name !== "" && !/[\ud800-\udfff]/u.test(name);

/** The shortest decimal that reads back as the number, with a point or an exponent: 0.25, 1e-05, 1000000.0. */
function shortest(value) {
  const sign = Object.is(value, -0) || value < 0 ? "-" : "";
  const [mantissa, exponent] = Math.abs(value).toExponential().split("e");
  const figures = mantissa.replace(".", "");
  const point = Number(exponent) + 1; // digits in front of the point
  if (point <= -4 || point > 16) {
    const power = String(Math.abs(point - 1)).padStart(2, "0");
    return `${sign}${mantissa}e${point < 1 ? "-" : "+"}${power}`;
  }
  if (point <= 0) return `${sign}0.${"0".repeat(-point)}${figures}`;
  return `${sign}${figures.slice(0, point).padEnd(point, "0")}.${figures.slice(point) || "0"}`;
}

/** Set, k, shape, tiles and bytes of a subset. Throws FormatError unless the header is exactly that of a subset. */
export function readSubset(buffer) {
  const bytes = new Uint8Array(buffer);
  check(bytes.length >= 8, "too short");
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true)) + 8;
  check(length <= bytes.length && length - 8 <= LARGEST_HEADER && length % HEADER_STEP === 0, "the header is cut");
  const text = new TextDecoder("latin1").decode(bytes.subarray(8, length));
  const { info, shape } = parseHeader(text);
  const [k] = shape;
  const rankBytes = shape.slice(1).reduce((a, b) => a * b, 1);
  check(info.ipc * rankBytes <= LARGEST_FILE, "the set is too large");
  const end = JSON.stringify({ dtype: "U8", shape, data_offsets: [0, k * rankBytes] });
  const json = `{"__metadata__":${ascii(JSON.stringify(info.metadata))},"tiles":${end}}`;
  check(text === json.padEnd(length - 8, " "), "the header is not the one that its values give");
  // The header of the whole set is the longest; all have its length.
  const longest = 8 + json.length + `${info.ipc}${info.ipc * rankBytes}`.length - `${k}${k * rankBytes}`.length;
  check(length === Math.ceil(longest / HEADER_STEP) * HEADER_STEP, "the header is of another length");
  check(bytes.length === length + k * rankBytes, "the file is longer or shorter than its header says");
  return {
    ...info,
    k,
    shape, // k, C, f², ch, s, s
    rankBytes,
    headerBytes: length,
    bytes,
    tiles: bytes.subarray(length),
    offset: (...indices) => indices.reduce((sum, index, i) => sum * shape[i] + index, 0),
  };
}

function parseHeader(text) {
  let metadata, tiles, classes, mean, std;
  try {
    ({ __metadata__: metadata, tiles } = JSON.parse(text));
    [classes, mean, std] = [metadata.classes, metadata.mean, metadata.std].map((list) => JSON.parse(list));
  } catch {
    throw new FormatError("this is no rankmajor/1 file: it has no such header");
  }
  check(metadata.format === "rankmajor/1", "the format is another one");
  const names = ["format", "ipc", "factor", "classes", "mean", "std", "image_size", "channels"];
  check(Object.keys(metadata).join() === names.join(), "the metadata are not those of the format");
  const [ipc, imageSize] = [whole(metadata.ipc, LARGEST), whole(metadata.image_size, LARGEST)];
  const [factor, channels] = [whole(metadata.factor, imageSize), whole(metadata.channels, 4)];
  check(Array.isArray(classes) && classes.length > 0 && classes.every(isName), "classes is no list of names");
  check(metadata.classes === ascii(JSON.stringify(classes)), "classes is written in another way");
  for (const [name, list, least] of [["mean", mean, -LARGEST_MOMENT], ["std", std, 1 / LARGEST_MOMENT]]) {
    check(Array.isArray(list) && list.length === channels, `${name} is of another length`);
    const right = list.every((value) => typeof value === "number" && value >= least && value <= LARGEST_MOMENT);
    check(right, `${name} is outside its limits`);
    check(metadata[name] === `[${list.map(shortest).join()}]`, `${name} is written in another way`);
  }
  const k = tiles?.shape?.[0];
  check(Number.isInteger(k) && k >= 1 && k <= ipc, "there is no such subset");
  const side = Math.ceil(imageSize / factor);
  const shape = [k, classes.length, factor ** 2, channels, side, side];
  return { info: { metadata, ipc, factor, imageSize, channels, classes, mean, std }, shape };
}

/** Hexadecimal sha256 of some bytes. */
export async function sha256(bytes) {
  const digest = new Uint8Array(await globalThis.crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Throws FormatError, which names the ranks to fetch again, unless the subset is what the manifest promises. */
export async function verifySubset(subset, manifest) {
  check(manifest.manifest_version === 1, `the manifest is of version ${manifest.manifest_version}`);
  const bad = [];
  for (let r = 1; r <= subset.k; r++) {
    const rank = subset.tiles.subarray((r - 1) * subset.rankBytes, r * subset.rankBytes);
    if ((await sha256(rank)) !== manifest.rank_sha256?.[r - 1]) bad.push(r);
  }
  check(bad.length === 0, `rank ${bad.join(", ")} is not what the manifest promises`);
  check((await sha256(subset.bytes)) === manifest.subset_sha256?.[subset.k - 1], "the header is of another set");
}
