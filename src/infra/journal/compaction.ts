/**
 * Makes one small segment of neighbours that few live logs need. Called by the journal, a step at a time.
 *
 * Always holds: the new segment is whole and synced before it gets its name, and its name is synced before the old ones go; it
 * stands for exactly the range of the old ones, so a process that ends anywhere in between leaves either the old ones
 * or the new one to be read. Records are checked when they are read; a segment that turns out damaged is left alone.
 */
import { limits } from "../../domain/limits.ts";
import type { JournalFiles } from "./folder-files.ts";
import { type LoggedRecord, RecordWriter } from "./record-codec.ts";
import { seal } from "./recovery.ts";
import { headerOf, type Log, readRecords, Segment, segmentHeader, temporaryName } from "./segment.ts";

/** Live logs by the birth of their records. */
export type LiveLogs = (birth: { segment: number; ref: number }) => Log | undefined;

/**
 * Neighbours to make one of, or null: together half of them or more is dead, or they are all small. The oldest first.
 * @param sealed closed segments in order
 */
export function sparseRun(sealed: readonly Segment[], segmentBytes: number): readonly Segment[] | null {
  const readBytesMax = Math.min(limits.journalCompactReadBytes, 2 * segmentBytes);
  for (let from = 0; from < sealed.length; from++) {
    const run: Segment[] = [];
    let best: readonly Segment[] | null = null;
    let bytes = 0;
    let liveBytes = 0;
    for (const segment of sealed.slice(from)) {
      if (segment.damaged || (run.length > 0 && bytes + segment.bytes > readBytesMax)) break;
      run.push(segment);
      bytes += segment.bytes;
      liveBytes += segment.liveBytes;
      const small = run.length > 1 && bytes <= segmentBytes / 2;
      if (liveBytes <= bytes / 2 - segmentOverheadBytes || small) best = [...run];
    }
    if (best !== null) return best;
  }
  return null;
}

/** A segment of one short log is never sparse: rewriting it would give nothing back. */
const segmentOverheadBytes = 128;

/**
 * The merged segment, which has its name: from here on it stands for the old ones, which are deleted once the folder
 * is synced. null: a source is damaged, and marked so.
 * @throws JournalError; then the old ones are as they were
 */
export async function mergeSegments(
  files: JournalFiles,
  sources: readonly Segment[],
  salt: number,
  liveLog: LiveLogs,
): Promise<Segment | null> {
  const first = sources[0]?.first ?? 0;
  const merged = new Segment(first, sources.at(-1)?.last ?? first, salt);
  const writer = new RecordWriter();
  const refs = new Map<Log, number>();
  const take = (log: Log, record: LoggedRecord): void => {
    let ref = refs.get(log);
    let bytes = 0;
    if (ref === undefined) {
      ref = refs.size;
      refs.set(log, ref);
      if (log.birth !== null) bytes += writer.declare(salt, ref, log.birth, log.taskId);
    }
    bytes += writer.record(salt, ref, record);
    merged.note(log, ref, bytes);
  };
  for (const source of sources) {
    const file = files.read(source.name);
    const header = headerOf(file, source.first, source.last);
    const reading = readRecords(
      file,
      { salt: source.salt, hasRoom: false },
      {
        record: ({ birth }, record) => {
          const log = liveLog(birth);
          if (log !== undefined) take(log, record);
        },
      },
    );
    let step = reading.next();
    for (let records = 1; step.done !== true; records++) {
      if (records % limits.journalCompactTurnRecords === 0)
        await new Promise((resolve) => setImmediate(resolve));
      step = reading.next();
    }
    if (header.found !== "header" || step.value.end !== "sealed") {
      source.damaged = true;
      for (const log of merged.logs.keys()) log.segments.delete(merged);
      return null;
    }
  }
  try {
    await writeSegment(files, merged, writer);
  } catch (error) {
    for (const log of merged.logs.keys()) log.segments.delete(merged);
    throw error;
  }
  return merged;
}

async function writeSegment(files: JournalFiles, merged: Segment, writer: RecordWriter): Promise<void> {
  const temporary = temporaryName(merged.name);
  files.remove(temporary);
  const handle = files.create(temporary);
  try {
    files.write(handle, segmentHeader(merged), 0);
    files.write(handle, writer.view, merged.bytes);
    merged.bytes += writer.length;
    merged.records = writer.records;
    seal(files, handle, merged);
    await files.sync(handle);
  } finally {
    files.close(handle);
  }
  files.rename(temporary, merged.name);
}
