/**
 * One file of the journal: its name, its header, what lies in it, and which logs still need it. Shared by the
 * journal, its recovery and its compaction.
 *
 * The name tells which numbers the segment stands for: one when it was written, a range when compaction made one
 * of several. Order of names is order of writing, so a log's records are found in order, wherever they lie.
 *
 * Header: magic 8 bytes · version u32 · first u32 · last u32 · salt u32 · room u32 · crc u32 of all before it.
 * Room is 1 where the segment was written as memory: until it is closed, zeros stand behind its last record.
 */
import { crc32 } from "node:zlib";
import { assert } from "../../domain/assert.ts";
import { type Birth, type LoggedRecord, recordAt, recordBehind } from "./record-codec.ts";

export const segmentHeaderBytes = 32;
const segmentVersion = 1;
const magic = new TextEncoder().encode("ORCHJRNL");
const crcOffset = segmentHeaderBytes - 4;
const roomOffset = crcOffset - 4;
const numberMax = 2 ** 32 - 1;

/** A task's records since it began, or began again. */
export interface Log {
  readonly taskId: string;
  /** Where it was first declared; null until its first flush. */
  birth: Birth | null;
  /** Records taken, marks included: the place of the next. */
  places: number;
  /** Frames taken: the sequence number of the next. */
  frames: number;
  /** Something of it is lost or may be. */
  damaged: boolean;
  live: boolean;
  /** The log that this one replaces once it is on disk. */
  replaces: Log | null;
  readonly segments: Set<Segment>;
}

export const newLog = (taskId: string): Log => ({
  taskId,
  birth: null,
  places: 0,
  frames: 0,
  damaged: false,
  live: true,
  replaces: null,
  segments: new Set(),
});

/** Unique among the files of a journal: numbers of segments are given once, refs once in a segment. */
export function birthKey({ segment, ref }: Birth): number {
  assert(ref < 2 ** 21, "a segment declares fewer logs than that");
  return segment * 2 ** 21 + ref;
}

export interface Entry {
  readonly ref: number;
  /** Of its records and its declaration in this segment. */
  bytes: number;
}

export class Segment {
  readonly name: string;
  /** Live logs only. */
  readonly logs = new Map<Log, Entry>();
  bytes = segmentHeaderBytes;
  records = 0;
  liveBytes = 0;
  damaged = false;

  constructor(
    readonly first: number,
    readonly last: number,
    readonly salt: number,
  ) {
    this.name = segmentName(first, last);
  }

  note(log: Log, ref: number, bytes: number): void {
    const entry = this.logs.get(log);
    if (entry === undefined) {
      this.logs.set(log, { ref, bytes });
      log.segments.add(this);
    } else entry.bytes += bytes;
    this.liveBytes += bytes;
  }

  release(log: Log): void {
    this.liveBytes -= this.logs.get(log)?.bytes ?? 0;
    this.logs.delete(log);
  }
}

const digits = (number: number): string => String(number).padStart(10, "0");
const segmentName = (first: number, last: number): string => `${digits(first)}-${digits(last)}.seg`;
export const temporaryName = (name: string): string => `${name}.tmp`;
export const isTemporaryName = (name: string): boolean => /^\d{10}-\d{10}\.seg\.tmp$/.test(name);

/** null: not the name of a segment. */
export function rangeOf(name: string): { first: number; last: number } | null {
  const match = /^(\d{10})-(\d{10})\.seg$/.exec(name);
  return match === null ? null : { first: Number(match[1]), last: Number(match[2]) };
}

export function segmentHeader({ first, last, salt }: Segment, hasRoom = false): Uint8Array {
  assert(first >= 1 && first <= last && last <= numberMax, "segments count from 1 and fit their field");
  const bytes = new Uint8Array(segmentHeaderBytes);
  const view = new DataView(bytes.buffer);
  bytes.set(magic);
  view.setUint32(8, segmentVersion, true);
  view.setUint32(12, first, true);
  view.setUint32(16, last, true);
  view.setUint32(20, salt, true);
  view.setUint32(roomOffset, hasRoom ? 1 : 0, true);
  view.setUint32(crcOffset, crc32(bytes.subarray(0, crcOffset)), true);
  return bytes;
}

export type FoundHeader =
  | { readonly found: "header"; readonly salt: number; readonly hasRoom: boolean }
  | { readonly found: "short" }
  | { readonly found: "newer"; readonly version: number }
  | { readonly found: "damage"; readonly what: string };

export function headerOf(file: Uint8Array, first: number, last: number): FoundHeader {
  if (file.byteLength < segmentHeaderBytes) return { found: "short" };
  const view = new DataView(file.buffer, file.byteOffset, segmentHeaderBytes);
  const ours = magic.every((byte, index) => file[index] === byte);
  if (!ours || crc32(file.subarray(0, crcOffset)) !== view.getUint32(crcOffset, true))
    return { found: "damage", what: "the header is not what was written" };
  const version = view.getUint32(8, true);
  if (version > segmentVersion) return { found: "newer", version };
  if (view.getUint32(12, true) !== first || view.getUint32(16, true) !== last)
    return { found: "damage", what: "the header is of another segment" };
  return {
    found: "header",
    salt: view.getUint32(20, true),
    hasRoom: view.getUint32(roomOffset, true) === 1,
  };
}

export type SegmentEnd =
  /** Its last record says that it was closed, and all are there. */
  | { readonly end: "sealed"; readonly offset: number }
  /** It ends with a whole record, or has room that nothing was stored in. */
  | { readonly end: "open"; readonly offset: number }
  /** It ends within a record, which begins at the offset. */
  | { readonly end: "torn"; readonly offset: number }
  | { readonly end: "damage"; readonly offset: number; readonly what: string };

export interface SegmentVisitor {
  /** `bytes`: what the record takes in the file. */
  record(owner: { birth: Birth; taskId: string; ref: number }, record: LoggedRecord, bytes: number): void;
  declared?(owner: { birth: Birth; taskId: string; ref: number }, bytes: number): void;
}

/** Reads a segment as far as it is in order; a generator that rests after each record, for callers who share their time. */
export function* readRecords(
  file: Uint8Array,
  { salt, hasRoom }: { readonly salt: number; readonly hasRoom: boolean },
  visitor: SegmentVisitor,
): Generator<void, SegmentEnd & { readonly records: number }> {
  const owners = new Map<number, { birth: Birth; taskId: string; ref: number }>();
  let offset = segmentHeaderBytes;
  let records = 0;
  while (offset < file.byteLength) {
    const found = recordAt(file, offset, salt);
    if (found.found === "torn" || found.found === "unwritten") {
      if ((found.found === "unwritten" && !hasRoom) || recordBehind(file, offset, salt))
        return { end: "damage", offset, what: "a record's length is not what was written", records };
      return { end: found.found === "torn" ? "torn" : "open", offset, records };
    }
    if (found.found === "damage") return { end: "damage", offset, what: found.what, records };
    if (found.found === "sealed") {
      if (found.recordsBefore !== records)
        return { end: "damage", offset, what: "records are missing", records };
      if (found.next !== file.byteLength)
        return { end: "damage", offset: found.next, what: "there is more behind the end", records };
      return { end: "sealed", offset: found.next, records: records + 1 };
    }
    if (found.found === "declare") {
      owners.set(found.declared.ref, found.declared);
      visitor.declared?.(found.declared, found.next - offset);
    } else {
      const owner = owners.get(found.ref);
      if (owner === undefined)
        return { end: "damage", offset, what: "a record's task is not named", records };
      visitor.record(owner, found.record, found.next - offset);
    }
    records++;
    offset = found.next;
    yield;
  }
  return { end: "open", offset, records };
}
