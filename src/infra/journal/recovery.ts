/**
 * Reads a journal as the last process left it, and mends what a `kill -9` may leave: half a record at the end of the
 * last segment, temporary files, segments that compaction had already merged. Called once, by the journal at boot.
 *
 * Always holds: everything is read before anything is changed. Nothing behind damage in a segment is used; every log
 * that may have had records there is damaged, unless its next record, found later, follows on without a gap. A damaged
 * segment is left as it is for as long as one of its logs lives: it is what makes the damage known after another restart.
 */
import { isFrameKind, type JournalDamage, JournalError, type JournalRecord } from "../../ports/journal.ts";
import type { JournalFiles } from "./folder-files.ts";
import { type Birth, type LoggedRecord, RecordWriter } from "./record-codec.ts";
import {
  birthKey,
  headerOf,
  isTemporaryName,
  type Log,
  newLog,
  rangeOf,
  readRecords,
  Segment,
  type SegmentEnd,
} from "./segment.ts";

export interface RecoveredLogs {
  readonly logs: ReadonlyMap<string, { readonly log: Log; readonly records: readonly JournalRecord[] }>;
  /** In order; all of them closed. */
  readonly segments: readonly Segment[];
  readonly damage: readonly JournalDamage[];
  /** The highest number ever used, as far as files tell. */
  readonly lastNumber: number;
}

interface Found {
  readonly log: Log;
  readonly key: number;
  readonly records: JournalRecord[];
  /** Something may be lost behind what is there. */
  unsure: boolean;
}

/** @throws JournalError */
export function recoverJournal(files: JournalFiles): RecoveredLogs {
  const names = files.list();
  const { kept, covered } = withoutCovered(names, files);
  const found = new Map<string, Found>();
  const segments: Segment[] = [];
  const damage: JournalDamage[] = [];
  const repairs: (() => void)[] = [...names.filter(isTemporaryName), ...covered].map(
    (name) => () => files.remove(name),
  );
  for (const [index, name] of kept.entries()) {
    const { segment, end } = readSegment(files, name, index === kept.length - 1, found);
    if (segment === null) {
      repairs.push(() => files.remove(name));
      continue;
    }
    segments.push(segment);
    if (end.end === "damage") {
      segment.damaged = true;
      damage.push({ file: files.pathOf(name), offset: end.offset, what: end.what });
      for (const one of found.values()) one.unsure = true;
    } else if (end.end !== "sealed") repairs.push(() => closeTail(files, segment));
  }
  for (const one of found.values()) if (one.unsure) one.log.damaged = true;
  for (const repair of repairs) repair();
  const lastNumber = Math.max(0, ...names.map((name) => rangeOf(name)?.last ?? 0));
  return { logs: found, segments, damage, lastNumber };
}

/** A merged segment replaces those within its range; they are left where the process ended before it deleted them. */
function withoutCovered(
  names: readonly string[],
  files: JournalFiles,
): { kept: string[]; covered: string[] } {
  const ranges = names.flatMap((name) => {
    const range = rangeOf(name);
    return range === null ? [] : [{ name, ...range }];
  });
  ranges.sort((a, b) => a.first - b.first || b.last - a.last);
  const kept: string[] = [];
  const covered: string[] = [];
  let before: { name: string; last: number } | null = null;
  for (const { name, first, last } of ranges) {
    if (before === null || first > before.last) {
      kept.push(name);
      before = { name, last };
    } else if (last <= before.last) covered.push(name);
    else
      throw new JournalError(
        "damaged",
        `${files.pathOf(before.name)} and ${files.pathOf(name)} overlap at offset 0; both were left as they are. Move the folder away to start without them`,
      );
  }
  return { kept, covered };
}

/** `segment` is null for a file that was made and not yet used. */
function readSegment(
  files: JournalFiles,
  name: string,
  isLast: boolean,
  found: Map<string, Found>,
): { segment: Segment | null; end: SegmentEnd } {
  const range = rangeOf(name);
  if (range === null) throw new JournalError("damaged", `${files.pathOf(name)} is no segment`);
  const file = files.read(name);
  const header = headerOf(file, range.first, range.last);
  if (header.found === "newer")
    throw new JournalError(
      "newer",
      `${files.pathOf(name)} was written by a newer version (format ${header.version}); start that version again, or move the file's folder away and lose the streams in it`,
    );
  const damagedAt = (offset: number, what: string): SegmentEnd => ({ end: "damage", offset, what });
  if (header.found !== "header") {
    if (header.found === "short" && isLast) return { segment: null, end: { end: "torn", offset: 0 } };
    const segment = new Segment(range.first, range.last, 0);
    segment.bytes = file.byteLength;
    const what = header.found === "short" ? "the file ends within its header" : header.what;
    return { segment, end: damagedAt(0, what) };
  }
  const segment = new Segment(range.first, range.last, header.salt);
  const declarations = new Map<number, number>();
  const reading = readRecords(file, header, {
    declared: ({ ref }, bytes) => void declarations.set(ref, bytes),
    record: (owner, record, bytes) => {
      const log = taken(found, owner, record);
      segment.note(log, owner.ref, bytes + (segment.logs.has(log) ? 0 : (declarations.get(owner.ref) ?? 0)));
    },
  });
  let step = reading.next();
  while (step.done !== true) step = reading.next();
  const end = step.value;
  segment.records = end.records;
  const damaged = end.end === "damage" || (!isLast && end.end !== "sealed");
  segment.bytes = damaged ? file.byteLength : end.offset;
  if (damaged && end.end !== "damage")
    return { segment, end: damagedAt(end.offset, "the file's end is missing") };
  return { segment, end };
}

function taken(
  found: Map<string, Found>,
  { birth, taskId }: { birth: Birth; taskId: string },
  record: LoggedRecord,
): Log {
  const key = birthKey(birth);
  let one = found.get(taskId);
  if (one === undefined || one.key !== key) {
    // Began again, or another task that was given the id: what was there before is void.
    if (one !== undefined) for (const segment of one.log.segments) segment.release(one.log);
    one = { log: { ...newLog(taskId), birth }, key, records: [], unsure: false };
    found.set(taskId, one);
  }
  const { log } = one;
  if (record.place !== log.places) log.damaged = true;
  if (log.damaged) return log;
  const { kind, bytes, tokenIds } = record;
  one.records.push(
    tokenIds === null ? { kind, seq: log.frames, bytes } : { kind, seq: log.frames, bytes, tokenIds },
  );
  one.unsure = false;
  log.places++;
  if (isFrameKind(kind)) log.frames++;
  return log;
}

/** Cuts off what is behind the last whole record, and closes the segment there. */
function closeTail(files: JournalFiles, segment: Segment): void {
  const handle = files.open(segment.name);
  try {
    seal(files, handle, segment);
  } finally {
    files.close(handle);
  }
}

/** The last write to a segment. */
export function seal(files: JournalFiles, handle: number, segment: Segment): void {
  const writer = new RecordWriter();
  const bytes = writer.sealed(segment.salt, segment.records);
  // First, so that nothing torn can follow what is written now.
  files.truncate(handle, segment.bytes);
  files.write(handle, writer.view, segment.bytes);
  segment.records++;
  segment.bytes += bytes;
}
