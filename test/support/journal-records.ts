/** Records as tests of the journal want them: different for each task and place, so that a mix-up shows. */
import type { JournalRecord } from "../../src/ports/journal.ts";

const utf8 = new TextEncoder();

export function journalToken(taskId: string, seq: number, round = 0): JournalRecord {
  const text = `${taskId}/${round}/${seq} ${"ü".repeat((seq * 7) % 23)}`;
  const bytes = utf8.encode(
    `id: ${seq}\nevent: token\ndata: {"t":${JSON.stringify(text)},"i":${seq - 1}}\n\n`,
  );
  // Every fifth without ids, some with several, as from a text of many bytes, and some that the engine did not name.
  const tokenIds = Array.from({ length: seq % 3 }, (_, index) =>
    seq % 7 === 1 && index === 0 ? -1 : (seq * 31 + index) * 97,
  );
  return seq % 5 === 4 ? { kind: "token", seq, bytes } : { kind: "token", seq, bytes, tokenIds };
}

export const journalRecord = (
  kind: "started" | "metrics" | "attempt" | "begin_again",
  taskId: string,
  seq: number,
): JournalRecord => ({ kind, seq, bytes: utf8.encode(`${kind} ${taskId} ${seq}`) });

/** Plain values: views of buffers compare by content. */
export const plain = (records: readonly JournalRecord[]): unknown[] =>
  records.map(({ kind, seq, bytes, tokenIds }) => [
    kind,
    seq,
    Buffer.from(bytes).toString("latin1"),
    tokenIds,
  ]);
