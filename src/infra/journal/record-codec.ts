/**
 * HOT. The bytes of a record in a segment, both ways. Used by the journal, its recovery and its compaction.
 *
 * A record: crc u32 · length u24 · check u8 · body of `length` bytes, little-endian. The CRC-32 covers all behind
 * itself and starts from the segment's salt, so that a record of another segment does not pass. The check is a
 * CRC-8 of the length alone: it finds up to three flipped bits, so a length that lies is damage and not a torn tail,
 * and a stretch of zeros is no record. Length and check are stored last, in one piece: in a file that is written as
 * memory zeros stand there until the record is whole.
 *
 * A body: varint(ref × 8 + kind), then by kind
 *   declare: varint segment and varint ref of the log's birth, the task's id in UTF-8. Once for each log in a segment.
 *   sealed:  varint number of records before it. The last record of a closed segment.
 *   others:  varint place within the log, for tokens varint(number of ids + 1; 0: not known) and each id + 1 (an
 *            unnamed one is -1), the bytes.
 *
 * A log is a task's records since it began (again): its birth never occurs twice among the files of a journal, so the records of
 * two tasks that had one id are never taken for one. Places count from 0 without gaps, marks included: a hole shows.
 */
import { crc32 } from "node:zlib";
import { assert } from "../../domain/assert.ts";
import { limits } from "../../domain/limits.ts";
import type { JournalRecordKind } from "../../ports/journal.ts";

const recordHeaderBytes = 8;
const varintBytesMax = 8;
const declareKind = 0;
const sealedKind = 1;
const kindNumbers: Readonly<Record<JournalRecordKind, number>> = {
  started: 2,
  token: 3,
  metrics: 4,
  attempt: 5,
  begin_again: 6,
};
const kindNames = new Map(
  Object.entries(kindNumbers).map(([name, number]) => [number, name as JournalRecordKind]),
);
const utf8 = new TextDecoder("utf-8", { fatal: true });

/** CRC-8 with polynomial 0x07: Hamming distance 4 up to 119 bits (Koopman, "Best CRC Polynomials"). */
const crc8Table = Uint8Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = (crc & 0x80 ? (crc << 1) ^ 0x07 : crc << 1) & 0xff;
  return crc;
});
function lengthCheck(low: number, middle: number, high: number): number {
  let crc = 0xa5;
  for (const byte of [low, middle, high]) crc = crc8Table[crc ^ byte] ?? 0;
  return crc;
}

export interface Birth {
  readonly segment: number;
  readonly ref: number;
}

/** A record of a log, as it lies in a segment. */
export interface LoggedRecord {
  readonly kind: JournalRecordKind;
  readonly place: number;
  readonly bytes: Uint8Array;
  readonly tokenIds: readonly number[] | null;
}

/** No record of `bytes` and so many token ids takes more, nor does the declaration of a task's log. */
export const recordBytesMax = (bytes: number, tokenIds: number): number =>
  recordHeaderBytes + (3 + tokenIds) * varintBytesMax + bytes;
export const declarationBytesMax = (taskId: string): number =>
  recordHeaderBytes + 3 * varintBytesMax + 3 * taskId.length;

/** What the CRC covers before the body; one after another, so one is enough. */
const lengthBytes = new Uint8Array(4);
const lengthView = new DataView(lengthBytes.buffer);

/**
 * Encodes records one after another: into a buffer that grows, whose owner writes `view` and resets, or behind `at` in
 * the memory of a file, whose owner asks for `room` first.
 */
export class RecordWriter {
  #buffer: Uint8Array;
  #words: DataView;
  #length: number;
  #records = 0;

  constructor(file?: { readonly memory: Uint8Array; readonly at: number }) {
    this.#buffer = file?.memory ?? new Uint8Array(16 * 1024);
    this.#words = wordsOf(this.#buffer);
    this.#length = file?.at ?? 0;
  }

  /** Bytes that fit without growing. */
  get room(): number {
    return this.#buffer.byteLength - this.#length;
  }

  get length(): number {
    return this.#length;
  }
  /** Since the writer was made, resets do not count. */
  get records(): number {
    return this.#records;
  }
  get view(): Uint8Array {
    return this.#buffer.subarray(0, this.#length);
  }
  /** One large batch does not hold its memory for ever. */
  reset(): void {
    this.#length = 0;
    if (this.#buffer.byteLength > limits.journalSegmentBytes) this.#use(new Uint8Array(16 * 1024));
  }

  #use(buffer: Uint8Array): void {
    this.#buffer = buffer;
    this.#words = wordsOf(buffer);
  }

  /** @returns bytes written, as the others do */
  declare(salt: number, ref: number, birth: Birth, taskId: string): number {
    const id = Buffer.from(taskId, "utf8");
    const start = this.#open(3 * varintBytesMax + id.byteLength);
    this.#varint(ref * 8 + declareKind);
    this.#varint(birth.segment);
    this.#varint(birth.ref);
    this.#copy(id);
    return this.#finish(start, salt);
  }

  record(salt: number, ref: number, { kind, place, bytes, tokenIds }: LoggedRecord): number {
    const start = this.#open((3 + (tokenIds?.length ?? 0)) * varintBytesMax + bytes.byteLength);
    this.#varint(ref * 8 + kindNumbers[kind]);
    this.#varint(place);
    if (kind === "token") {
      this.#varint(tokenIds === null ? 0 : tokenIds.length + 1);
      if (tokenIds !== null) for (const id of tokenIds) this.#varint(id + 1);
    }
    this.#copy(bytes);
    return this.#finish(start, salt);
  }

  /** @param recordsBefore in the whole segment */
  sealed(salt: number, recordsBefore: number): number {
    const start = this.#open(2 * varintBytesMax);
    this.#varint(sealedKind);
    this.#varint(recordsBefore);
    return this.#finish(start, salt);
  }

  #open(bodyBytesMax: number): number {
    const start = this.#length;
    const needed = start + recordHeaderBytes + bodyBytesMax;
    if (needed > this.#buffer.byteLength) {
      const grown = new Uint8Array(Math.max(needed, this.#buffer.byteLength * 2));
      grown.set(this.view);
      this.#use(grown);
    }
    this.#length = start + recordHeaderBytes;
    return start;
  }

  #varint(value: number): void {
    assert(Number.isSafeInteger(value) && value >= 0, "numbers of a record are whole and not negative");
    let rest = value;
    while (rest >= 128) {
      this.#buffer[this.#length++] = (rest % 128) + 128;
      rest = Math.floor(rest / 128);
    }
    this.#buffer[this.#length++] = rest;
  }

  #copy(bytes: Uint8Array): void {
    this.#buffer.set(bytes, this.#length);
    this.#length += bytes.byteLength;
  }

  #finish(start: number, salt: number): number {
    const length = this.#length - start - recordHeaderBytes;
    assert(length <= limits.journalRecordBytesMax, "a record fits into its length");
    const check = lengthCheck(length & 0xff, (length >>> 8) & 0xff, length >>> 16);
    lengthView.setUint32(0, length + check * 2 ** 24, true);
    const body = this.#buffer.subarray(start + recordHeaderBytes, this.#length);
    this.#words.setUint32(start, crc32(body, crc32(lengthBytes, salt)), true);
    this.#words.setUint32(start + 4, length + check * 2 ** 24, true);
    this.#records++;
    return this.#length - start;
  }
}

const wordsOf = ({ buffer, byteOffset, byteLength }: Uint8Array): DataView =>
  new DataView(buffer, byteOffset, byteLength);

export interface Declared {
  readonly ref: number;
  readonly birth: Birth;
  readonly taskId: string;
}

export type FoundRecord =
  | { readonly found: "declare"; readonly next: number; readonly declared: Declared }
  | { readonly found: "record"; readonly next: number; readonly ref: number; readonly record: LoggedRecord }
  | { readonly found: "sealed"; readonly next: number; readonly recordsBefore: number }
  /** The file ends within a record whose beginning is in order: a write that did not come to its end. */
  | { readonly found: "torn" }
  /** No record was stored here, or not to its end. */
  | { readonly found: "unwritten" }
  | { readonly found: "damage"; readonly what: string };

const damage = (what: string): FoundRecord => ({ found: "damage", what });
const unwritten: FoundRecord = { found: "unwritten" };

/** The record at `offset`, which lies before the end. Its bytes are a view. */
export function recordAt(file: Uint8Array, offset: number, salt: number): FoundRecord {
  if (file.byteLength - offset < recordHeaderBytes) return { found: "torn" };
  const at = (index: number): number => file[offset + index] ?? 0;
  if (at(4) + at(5) + at(6) + at(7) === 0) return unwritten;
  if (lengthCheck(at(4), at(5), at(6)) !== at(7)) return damage("a record's length is not what was written");
  const bodyStart = offset + recordHeaderBytes;
  const next = bodyStart + (at(4) | (at(5) << 8) | (at(6) << 16));
  if (next > file.byteLength) return { found: "torn" };
  const crc = (at(0) | (at(1) << 8) | (at(2) << 16) | (at(3) << 24)) >>> 0;
  if (crc32(file.subarray(offset + 4, next), salt) >>> 0 !== crc)
    return damage("a record's checksum is wrong");
  return bodyOf(file.subarray(bodyStart, next), next) ?? damage("a record makes no sense");
}

function bodyOf(body: Uint8Array, next: number): FoundRecord | null {
  let at = 0;
  const varint = (): number => {
    let value = 0;
    let scale = 1;
    for (let bytes = 0; bytes < varintBytesMax; bytes++) {
      const byte = body[at++];
      if (byte === undefined) return Number.NaN;
      value += (byte % 128) * scale;
      if (byte < 128) return value;
      scale *= 128;
    }
    return Number.NaN;
  };
  const head = varint();
  const kindNumber = head % 8;
  const ref = Math.floor(head / 8);
  if (kindNumber === sealedKind) {
    const recordsBefore = varint();
    return Number.isNaN(recordsBefore) ? null : { found: "sealed", next, recordsBefore };
  }
  if (kindNumber === declareKind) {
    const birth = { segment: varint(), ref: varint() };
    const taskId = Number.isNaN(birth.segment + birth.ref) ? null : textOf(body.subarray(at));
    return taskId === null ? null : { found: "declare", next, declared: { ref, birth, taskId } };
  }
  const kind = kindNames.get(kindNumber);
  const place = varint();
  if (kind === undefined || Number.isNaN(place)) return null;
  let tokenIds: number[] | null = null;
  if (kind === "token") {
    const ids = varint() - 1;
    if (!(ids <= body.byteLength)) return null;
    if (ids >= 0) tokenIds = Array.from({ length: ids }, () => varint() - 1);
    if (tokenIds?.some(Number.isNaN)) return null;
  }
  return { found: "record", next, ref, record: { kind, place, bytes: body.subarray(at), tokenIds } };
}

function textOf(bytes: Uint8Array): string | null {
  try {
    return utf8.decode(bytes);
  } catch {
    return null;
  }
}

/**
 * Whether a whole record begins somewhere behind `offset`. Half a write leaves none; a length that was damaged and still
 * has a fitting check leaves the records behind it. Texts cannot pass for one: their writers do not know the salt.
 */
export function recordBehind(file: Uint8Array, offset: number, salt: number): boolean {
  let end = Math.min(file.byteLength - recordHeaderBytes, offset + limits.journalSegmentBytes);
  // None begins in the room that nothing was stored in.
  while (end > offset && file[end - 1] === 0) end--;
  for (let at = offset + 1; at < end; at++) {
    // Long ones are left out: nearly every chance fit of the check would be one, and cost its length.
    if (file[at + 6] !== 0) continue;
    const { found } = recordAt(file, at, salt);
    if (found === "record" || found === "declare" || found === "sealed") return true;
  }
  return false;
}
