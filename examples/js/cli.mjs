// node cli.mjs FILE [MANIFEST] [--pixel RANK CLASS TILE CHANNEL ROW COLUMN]...
// Prints k, shape and sha256 of a subset, after comparing it with its manifest where that is given, and pixels.
import { readFile } from "node:fs/promises";
import process from "node:process";

import { FormatError, readSubset, sha256, verifySubset } from "./subset.mjs";

const [first, ...pixels] = process.argv.slice(2).join("\0").split("\0--pixel\0");
const [file, manifest] = first.split("\0");
if (!file) {
  console.error("usage: node cli.mjs FILE [MANIFEST] [--pixel RANK CLASS TILE CHANNEL ROW COLUMN]...");
  process.exit(2);
}
try {
  const subset = readSubset(await readFile(file));
  if (manifest) await verifySubset(subset, JSON.parse(await readFile(manifest, "utf8")));
  console.log(`k ${subset.k}\nshape ${subset.shape.join(" ")}\nsha256 ${await sha256(subset.bytes)}`);
  for (const text of pixels) {
    const indices = text.split("\0").map(Number);
    const within = indices.length === 6 && indices.every((v, i) => Number.isInteger(v) && v >= 0 && v < subset.shape[i]);
    if (!within) throw new RangeError(`${indices.join(" ")} is outside the shape ${subset.shape.join(" ")}`);
    console.log(`pixel ${subset.tiles[subset.offset(...indices)]}`);
  }
} catch (error) {
  console.error(`cli.mjs: ${error.message}`);
  process.exit(error instanceof FormatError ? 5 : 1);
}
