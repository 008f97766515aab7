// Cartoon faces with captions and semantic masks: DiceBear's style "Toon Head" by Johan Melin, CC-BY 4.0.
//
//     node faces.mjs OUT [--train N] [--test N] [--size PIXELS]
//
// A face is a function of its seed, which is the SHA-256 of `train-0` and so on. The colours and parts are the style's defaults. Each is drawn twice: as it is,
// and in one flat colour per label without smoothing, at four times the size, of which each pixel of the mask takes the commonest.

import { createHash } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import zlib from "node:zlib";
import { parseArgs } from "node:util";

import { createAvatar } from "@dicebear/core";
import * as toonHead from "@dicebear/toon-head";
import { Resvg } from "@resvg/resvg-js";

// Label numbers are the order. The colours are those that the masks show in a viewer, and those they are drawn in.
const LABELS = [
  ["background", "ffffff"],
  ["hair", "d62728"],
  ["skin", "ffbb78"],
  ["clothes", "1f77b4"],
  ["features", "2ca02c"],
];
const LABEL_COLOURS = LABELS.map(([, colour]) => [...Buffer.from(colour, "hex")]);
const OVERSAMPLING = 4;

const SKIN = { f1c3a5: "light", c68e7a: "rosy", b98e6a: "tan", a36b4f: "brown", "5c3829": "dark" };
const HAIR = { "2c1b18": "black", a55728: "red", b58143: "light brown", d6b370: "blonde", 724133: "brown" };
const CLOTHES_COLOUR = {
  545454: "grey", b11f1f: "red", "0b3286": "blue", "147f3c": "green", eab308: "yellow",
  "731ac3": "purple", ec4899: "pink", f97316: "orange", 151613: "black", e8e9e6: "white",
};
const CLOTHES = { turtleNeck: "turtleneck", openJacket: "jacket", dress: "dress", shirt: "shirt", tShirt: "t-shirt" };
const TOP = { sideComed: "side-swept", undercut: "undercut", spiky: "spiky", bun: "bun" };
const REAR = { longStraight: "long straight", longWavy: "long wavy", shoulderHigh: "shoulder-length", neckHigh: "neck-length" };
const BEARD = {
  moustacheTwirl: "twirled moustache", fullBeard: "full beard", chin: "chin beard",
  chinMoustache: "goatee", longBeard: "long beard",
};
const MOUTH = { laugh: "laughing", angry: "angry", agape: "surprised", smile: "smiling", sad: "sad" };
const EYES = { happy: "happy eyes", wide: "wide eyes", bow: "closed eyes", humble: "looking down", wink: "winking" };
const BROWS = { raised: "raised eyebrows", angry: "frowning", happy: "arched eyebrows", sad: "worried eyebrows", neutral: undefined };

// The colours of each label in a face; all but the background's and the features' are shaded in places, which leaves four fifths of them.
const DRAWN = {
  background: ["ffffff"],
  hair: shaded(Object.keys(HAIR)),
  skin: shaded(Object.keys(SKIN)),
  clothes: shaded([...Object.keys(CLOTHES_COLOUR), "cbecf7"]),
  features: ["f6f1e4", "4b2422"],
};

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    train: { type: "string", default: "10000" },
    test: { type: "string", default: "1000" },
    size: { type: "string", default: "64" },
  },
});
const [out] = positionals;
const size = Number(values.size);
if (!out || positionals.length > 1 || !(size >= 16)) {
  console.error("usage: node faces.mjs OUT [--train N] [--test N] [--size PIXELS]");
  process.exit(2);
}
if (fs.existsSync(out) && fs.readdirSync(out).length > 0) {
  console.error(`${out} already exists and isn't empty: choose another folder, or remove it first`);
  process.exit(1);
}

// Two seeds can give the same face; each is kept once, so that no face of the test set is one of the training set.
const seen = new Set();
for (const part of ["train", "test"]) {
  const count = Number(values[part]);
  const images = path.join(out, part, "images");
  const masks = path.join(out, part, "masks");
  fs.mkdirSync(images, { recursive: true });
  fs.mkdirSync(masks, { recursive: true });
  let metadata = "";
  for (let draw = 0, number = 0; number < count; draw++) {
    // The style's generator makes similar faces of similar seeds.
    const seed = createHash("sha256").update(`${part}-${draw}`).digest("hex");
    const avatar = createAvatar(toonHead, { seed });
    const svg = avatar.toString();
    if (seen.has(svg)) continue;
    seen.add(svg);
    const name = `${String(number++).padStart(5, "0")}.png`;
    fs.writeFileSync(path.join(images, name), new Resvg(svg, { background: "white", fitTo: { mode: "width", value: size } }).render().asPng());
    fs.writeFileSync(path.join(masks, name), mask(seed));
    const attributes = avatar.toJson().extra;
    metadata += JSON.stringify({ file_name: name, text: caption(attributes, seed), attributes }) + "\n";
  }
  fs.writeFileSync(path.join(images, "metadata.jsonl"), metadata);
}
const labels = LABELS.map(([name, colour]) => ({ name, mask: colour, drawn: DRAWN[name] }));
fs.writeFileSync(path.join(out, "labels.json"), JSON.stringify(labels, null, 2) + "\n");
fs.writeFileSync(
  path.join(out, "ATTRIBUTION.md"),
  `The faces are drawn with DiceBear (https://www.dicebear.com), style "Toon Head" by Johan Melin (https://www.johanmelin.com),
https://www.figma.com/community/file/1589627891082866389
Licensed under Creative Commons Attribution 4.0 International (CC-BY 4.0): https://creativecommons.org/licenses/by/4.0/
They are rendered at ${size}x${size} pixels on white; captions and masks are derived from the style's own attributes.
`,
);

/** "woman, rosy skin, blonde bun, long wavy hair, smiling, red dress"; the style has no sexes, see docs/results.md. */
function caption(a, seed) {
  const colour = HAIR[hex(a.hairColor)];
  const person = a.beard ? "man" : a.rearHair || a.hair === "bun" ? "woman" : "person";
  const top = TOP[a.hair];
  const parts = [
    `${SKIN[hex(a.skinColor)]} skin`,
    seed[20] < "4" ? `${colour} hair` : top === "bun" || top === "undercut" ? `${colour} ${top}` : `${colour} ${top} hair`,
    a.rearHair && `${REAR[a.rearHair]} hair`,
    BEARD[a.beard],
    MOUTH[a.mouth],
    EYES[a.eyes],
    BROWS[a.eyebrows],
    `${CLOTHES_COLOUR[hex(a.clothesColor)]} ${CLOTHES[a.clothes]}`,
  ];
  // A quarter of the parts are left out, by the seed's digits, so that prompts need not be complete.
  const said = parts.filter((part, index) => part && seed[index] >= "4");
  return [person, ...said].join(", ");
}

function shaded(colours) {
  const shade = (colour) => Buffer.from([...Buffer.from(colour, "hex")].map((level) => Math.round(0.8 * level))).toString("hex");
  return colours.flatMap((colour) => [colour, shade(colour)]);
}

function hex(colour) {
  return colour.replace("#", "").toLowerCase();
}

/** The labels of a face, as the bytes of a PNG with a palette. */
function mask(seed) {
  const [background, hair, skin, clothes, features] = LABELS.map(([, colour]) => `#${colour}`);
  const svg = createAvatar(toonHead, {
    seed,
    hairColor: [hair.slice(1)],
    skinColor: [skin.slice(1)],
    clothesColor: [clothes.slice(1)],
  })
    .toString()
    .replaceAll(/fill="(black|#3F2626)" fill-opacity="[0-9.]+"/g, 'fill="none"') // shades
    .replaceAll(/stroke="black"/g, "")
    .replaceAll("#CBECF7", clothes) // the shirt under a jacket
    .replaceAll(/#(4B2422|611519|E0564B|F6F1E4)/g, features) // eyes, mouth, teeth
    .replace("<svg ", '<svg shape-rendering="crispEdges" ')
    .replaceAll('shape-rendering="auto"', "");
  const { pixels, width } = new Resvg(svg, { background, fitTo: { mode: "width", value: size * OVERSAMPLING } }).render();
  const labels = new Uint8Array(size * size);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const votes = new Uint8Array(LABELS.length);
      for (let i = 0; i < OVERSAMPLING ** 2; i++) {
        const at = 4 * ((y * OVERSAMPLING + Math.floor(i / OVERSAMPLING)) * width + x * OVERSAMPLING + (i % OVERSAMPLING));
        votes[nearestLabel(pixels.subarray(at, at + 3))]++;
      }
      labels[y * size + x] = votes.indexOf(Math.max(...votes));
    }
  }
  return palettePng(labels);
}

/** The label of a colour: exact but round the mouth, where the drawing has a mask of its own with smooth edges. */
function nearestLabel(rgb) {
  const distances = LABEL_COLOURS.map((colour) => colour.reduce((sum, value, i) => sum + (value - rgb[i]) ** 2, 0));
  return distances.indexOf(Math.min(...distances));
}

function palettePng(labels) {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(size, 0);
  header.writeUInt32BE(size, 4);
  header.set([8, 3, 0, 0, 0], 8);
  const rows = Buffer.alloc(size * (size + 1));
  for (let y = 0; y < size; y++) rows.set(labels.subarray(y * size, (y + 1) * size), y * (size + 1) + 1);
  return Buffer.concat([
    Buffer.from("\x89PNG\r\n\x1a\n", "latin1"),
    chunk("IHDR", header),
    chunk("PLTE", Buffer.from(LABELS.map(([, colour]) => colour).join(""), "hex")),
    chunk("IDAT", zlib.deflateSync(rows)),
    chunk("IEND", Buffer.alloc(0)),
  ]);
}

function chunk(type, data) {
  const body = Buffer.concat([Buffer.from(type, "latin1"), data]);
  const ends = Buffer.alloc(8);
  ends.writeUInt32BE(data.length, 0);
  ends.writeUInt32BE(crc32(body), 4);
  return Buffer.concat([ends.subarray(0, 4), body, ends.subarray(4)]);
}

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  }
  return (crc ^ 0xffffffff) >>> 0;
}
