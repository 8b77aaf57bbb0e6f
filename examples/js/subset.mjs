// Reads the file of a subset in the format rankmajor/1 (docs/format.md): an ES module for browsers and Node,
// without any dependency.
//
//     const subset = readSubset(await (await fetch(url)).arrayBuffer());
//     await verifySubset(subset, manifest);          // manifest: GET /v1/sets/{name}/manifest
//     subset.tiles[subset.offset(rank, label, tile, channel, row, column)]   // 0..255

const HEADER_STEP = 4096;

export class FormatError extends Error {}

const check = (right, what) => {
  if (!right) throw new FormatError(`${what}: the file is damaged or no rankmajor/1 file, fetch it again`);
};

const whole = (text) => {
  check(/^[1-9][0-9]{0,14}$/.test(text), `${text} is no number above 0`);
  return Number(text);
};

const ascii = (text) =>
  text.replace(/[\u007f-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);

/** Set, k, shape, tiles and bytes of a subset. Throws FormatError unless the header is exactly that of a subset. */
export function readSubset(buffer) {
  const bytes = new Uint8Array(buffer);
  check(bytes.length >= 8, "too short");
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true)) + 8;
  check(length <= bytes.length && length % HEADER_STEP === 0, "the header is cut");
  const text = new TextDecoder("latin1").decode(bytes.subarray(8, length));
  const { info, shape } = parseHeader(text);
  const [k] = shape;
  const rankBytes = shape.slice(1).reduce((a, b) => a * b, 1);
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
  let document, lists;
  try {
    document = JSON.parse(text);
    const { classes, mean, std } = document.__metadata__;
    lists = { classes: JSON.parse(classes), mean: JSON.parse(mean), std: JSON.parse(std) };
  } catch {
    throw new FormatError("this is no rankmajor/1 file: it has no such header");
  }
  const { __metadata__: metadata, tiles } = document;
  check(metadata.format === "rankmajor/1", `the format is ${metadata.format}`);
  const names = ["format", "ipc", "factor", "classes", "mean", "std", "image_size", "channels"];
  check(Object.keys(metadata).join() === names.join(), "the metadata are not those of the format");
  const [ipc, factor, imageSize, channels] = ["ipc", "factor", "image_size", "channels"].map((n) => whole(metadata[n]));
  const side = Math.ceil(imageSize / factor);
  const k = tiles?.shape?.[0];
  check(Number.isInteger(k) && k >= 1 && k <= ipc, `there is no subset ${k}`);
  const right = lists.mean.length === channels && lists.std.length === channels && lists.classes.length > 0;
  check(right, "mean, std or classes is of another length");
  const shape = [k, lists.classes.length, factor ** 2, channels, side, side];
  return { info: { metadata, ipc, factor, imageSize, channels, ...lists }, shape };
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
