/**
 * What a record and its log say of a task that ends, as domain/transcript.ts takes it. Called by endings.ts within the
 * turn that concludes the task, before its terminal event is in the log.
 */
import { assert } from "../domain/assert.ts";
import type { EngineIdentity, PoolSpec } from "../domain/pool.ts";
import { decodeFrame } from "../domain/sse.ts";
import { isTerminal, type TaskSpec } from "../domain/task.ts";
import type { AttemptFacts, Ending, LoggedEvent, TranscriptFacts } from "../domain/transcript.ts";
import type { TaskLog } from "./event-log.ts";
import type { TaskRecord } from "./task-registry.ts";

/** `spec`: with its input. */
export function factsOf(
  record: TaskRecord,
  spec: TaskSpec,
  pool: PoolSpec | null,
  ending: Ending,
): TranscriptFacts {
  const { state, finishedMs, log } = record;
  assert(isTerminal(state) && finishedMs !== null && !log.sealed, "it has ended and nobody was told yet");
  assert(record.sent.length === log.tokenCount, "each token of the log is known as a piece");
  return {
    spec,
    state,
    promise: record.promise,
    createdMs: record.createdMs,
    startedMs: record.startedMs,
    firstTokenMs: record.firstTokenMs,
    finishedMs,
    tokensIn: record.tokensIn,
    tokensOut: record.tokensOut,
    continuations: record.continuations,
    exact: record.exact,
    attempts: record.runs,
    pool,
    pieces: record.sent,
    events: otherEventsOf(log),
    ending,
  };
}

/** Of an attempt that starts. */
export function attemptFacts(
  run: Pick<AttemptFacts, "number" | "replicaId" | "slot" | "startedMs" | "build">,
  { ctxPerSlot, modelSizeBytes, modelParams }: EngineIdentity,
): AttemptFacts {
  return { ...run, ctxPerSlot, modelSizeBytes, modelParams };
}

const tokenName = "token".charCodeAt(0);
const decoder = new TextDecoder();

/** Of very many frames few are other than tokens: only those are read, where they are not known. */
function otherEventsOf(log: TaskLog): readonly LoggedEvent[] {
  if (log.otherEvents !== null) return log.otherEvents;
  const events: LoggedEvent[] = [];
  for (let seq = 0, left = log.length - log.tokenCount; left > 0; seq++) {
    const frame = log.frameAt(seq);
    // "id: N", a line feed, "event: ".
    if (frame[`${seq}`.length + 12] === tokenName) continue;
    const event = decodeFrame(decoder.decode(frame));
    assert(event?.type === "started" || event?.type === "metrics", "a log holds events and no end yet");
    events.push({ seq, ...event });
    left--;
  }
  return events;
}
