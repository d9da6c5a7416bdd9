/**
 * The last event of a task, made from its record: `end` for one that is done, `error` for every other. Called when a
 * task is concluded; the artifact of its transcript gets its name later, since the event is a part of it.
 */

import type { EngineKind } from "../domain/engine-kind.ts";
import { type ErrorCode, errorTable } from "../domain/errors.ts";
import type { StreamEvent } from "../domain/events.ts";
import type { AttemptResult, TaskRecord } from "./task-registry.ts";

/** Who canceled; also the `reason` of tasks_canceled_total. */
export type CancelReason = "client" | "disconnect" | "session" | "storage";

const canceledMessages: Readonly<Record<CancelReason, string>> = {
  client: "canceled on request",
  disconnect: "canceled because its last viewer left: submit with on_disconnect continue to keep it running",
  session: "canceled because its session was deleted",
  storage: "canceled because it could not be stored: nobody was told that it was accepted",
};

export const canceledMessage = (reason: string): string =>
  canceledMessages[reason as CancelReason] ?? canceledMessages.client;

export function endEvent(
  record: TaskRecord,
  attempt: AttemptResult,
  nowMs: number,
): Extract<StreamEvent, { type: "end" }> {
  const { createdMs, firstTokenMs, startedMs } = record;
  const decodeMs = firstTokenMs === null ? 0 : Math.round(nowMs - firstTokenMs);
  return {
    type: "end",
    data: {
      tokens_in: attempt.tokensIn,
      tokens_out: attempt.tokensOut,
      decode_ms: decodeMs,
      decode_time_ms: decodeMs,
      first_token_ms: firstTokenMs === null ? null : Math.round(firstTokenMs - createdMs),
      queue_ms: Math.round((startedMs ?? nowMs) - createdMs),
      finish_reason: attempt.finishReason,
      artifact_id: null,
      continuations: record.continuations,
      exact: record.exact,
      ...(attempt.result === null ? {} : { result: attempt.result }),
    },
  };
}

export function errorEvent(
  error: { readonly code: ErrorCode; readonly message: string },
  engine: EngineKind,
  retryAfterMs: number | null,
): Extract<StreamEvent, { type: "error" }> {
  return {
    type: "error",
    data: {
      code: error.code,
      message: error.message,
      engine,
      retriable: errorTable[error.code].retriable,
      retry_after_ms: retryAfterMs,
      artifact_id: null,
    },
  };
}

/** The event as viewers see it: with the name of the artifact that tells of the task. */
export function namingArtifact<E extends Extract<StreamEvent, { type: "end" | "error" }>>(
  event: E,
  artifactId: string | null,
): E {
  return artifactId === null ? event : { ...event, data: { ...event.data, artifact_id: artifactId } };
}
