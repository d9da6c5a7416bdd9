/**
 * The mock engine's model, `mock:words`: a tokenizer, and the choice of the next token. Pure.
 *
 * Tokens of a text: one for the beginning; one for every word (a run of letters and digits with the one space
 * before it, cut after 24 characters) and every emoji of the vocabulary; for any other character one for each of
 * its UTF-8 bytes. Every piece that the model says is one token, and a text that is cut between two pieces has
 * the same tokens as the uncut one: so a continuation from text is exact, as it is with the real engine.
 *
 * The next token depends on every token before it (a running hash), on the part of speech of the last one, which
 * is what makes it readable, and on the seed unless the temperature is 0. It never ends a text by itself: stop
 * strings, the token limit and the context do.
 */

const beginId = 1;
const byteIdFirst = 16;
const vocabularyIdFirst = 512;
const unknownIdFirst = 4096;

type Role = "determiner" | "adjective" | "noun" | "verb" | "preposition" | "comma" | "period" | "emoji";

const words: Readonly<Record<Role, readonly string[]>> = {
  determiner: [" the", " a", " every", " one", " this", " that", " another", " some"],
  adjective: [
    " small",
    " quiet",
    " old",
    " bright",
    " naïve",
    " patient",
    " blue",
    " déjà",
    " warm",
    " honest",
    " größer",
    " slow",
  ],
  noun: [
    ...[
      " river",
      " café",
      " garden",
      " engine",
      " 東京",
      " lantern",
      " stone",
      " señor",
      " window",
      " harbour",
      " книга",
    ],
    ...[
      " story",
      " clock",
      " field",
      " jalapeño",
      " letter",
      " bridge",
      " machine",
      " winter",
      " token",
      " queue",
      " slot",
    ],
  ],
  verb: [
    " watches",
    " carries",
    " finds",
    " remembers",
    " follows",
    " builds",
    " keeps",
    " answers",
    " opens",
    " counts",
  ],
  preposition: [" near", " under", " beyond", " without", " behind", " through"],
  comma: [","],
  period: ["."],
  emoji: ["🙂", "🌊", "✨", "👩"],
};

/** What may follow each part of speech; a role named twice is twice as likely. */
const following: Readonly<Record<Role, readonly Role[]>> = {
  determiner: ["adjective", "noun", "noun"],
  adjective: ["noun", "noun", "noun", "adjective"],
  noun: ["verb", "verb", "verb", "preposition", "period", "comma"],
  verb: ["determiner", "determiner", "preposition"],
  preposition: ["determiner"],
  comma: ["determiner"],
  period: ["determiner", "determiner", "determiner", "determiner", "emoji"],
  emoji: ["determiner"],
};

interface Entry {
  readonly text: string;
  readonly role: Role;
}

const vocabulary: readonly Entry[] = (Object.keys(words) as Role[]).flatMap((role) =>
  words[role].map((text) => ({ text, role })),
);
const idOf = new Map(vocabulary.map((entry, index) => [entry.text, vocabularyIdFirst + index]));
const idsOfRole = new Map(
  (Object.keys(words) as Role[]).map((role) => [role, words[role].map((text) => idOf.get(text) ?? 0)]),
);

/** Mixes one number into a 32-bit hash (the round of MurmurHash3). */
export function mix(hash: number, value: number): number {
  let k = Math.imul(value, 0xcc9e2d51);
  k = (k << 15) | (k >>> 17);
  let h = hash ^ Math.imul(k, 0x1b873593);
  h = (h << 13) | (h >>> 19);
  return (Math.imul(h, 5) + 0xe6546b64) >>> 0;
}

function finish(hash: number): number {
  let h = hash;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

function hashText(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return finish(hash);
}

const tokenPattern = / ?[\p{L}\p{N}]{1,24}|[\s\S]/gu;

/** The tokens of a text, the one for its beginning included. */
export function tokenize(text: string): number[] {
  const ids = [beginId];
  for (const [piece] of text.matchAll(tokenPattern)) {
    const known = idOf.get(piece);
    if (known !== undefined) ids.push(known);
    else if (/[\p{L}\p{N}]/u.test(piece)) ids.push(unknownIdFirst + (hashText(piece) >>> 8));
    else for (const byte of Buffer.from(piece, "utf8")) ids.push(byteIdFirst + byte);
  }
  return ids;
}

/** The words of a text for embeddings and rerank: lower case, without the space. */
function plainWords(text: string): string[] {
  return text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
}

export function textOf(id: number): string {
  return vocabulary[id - vocabularyIdFirst]?.text ?? "";
}

/** The running hash over a whole context. */
export function hashContext(ids: readonly number[]): number {
  let hash = 0;
  for (const id of ids) hash = mix(hash, id);
  return hash;
}

/** `hash` covers every token so far, `last` is the last of them; `salt` is the seed, or 0 at temperature 0. */
export function nextToken(hash: number, last: number, salt: number): number {
  const role = vocabulary[last - vocabularyIdFirst]?.role ?? "period";
  const draw = finish(mix(hash, salt));
  const roles = following[role];
  const ids = idsOfRole.get(roles[draw % roles.length] ?? "noun") ?? [];
  return ids[(draw >>> 8) % ids.length] ?? vocabularyIdFirst;
}

const vectorLength = 64;

/** A unit vector out of the words of a text: texts that share words are near. */
export function embedText(text: string): number[] {
  const vector = new Array<number>(vectorLength).fill(0);
  for (const word of plainWords(text)) {
    const hash = hashText(word);
    for (let i = 0; i < vectorLength; i++) vector[i] = (vector[i] ?? 0) + finish(mix(hash, i)) / 2 ** 31 - 1;
  }
  const norm = Math.hypot(...vector);
  if (norm === 0) vector[0] = 1;
  return norm === 0 ? vector : vector.map((value) => value / norm);
}

/** The share of the query's words that the text has, a little less the longer the text is. */
export function overlap(query: string, text: string): number {
  const asked = new Set(plainWords(query));
  const given = new Set(plainWords(text));
  if (asked.size === 0) return 0;
  let shared = 0;
  for (const word of asked) if (given.has(word)) shared += 1;
  return shared / asked.size - given.size / 1e6;
}
