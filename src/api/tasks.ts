/**
 * /v1/tasks: parse, call one service, shape the answer. The wire models are in schema/tasks.ts.
 * Another key's task is answered as if it did not exist, unless the caller is an admin.
 */
import { Elysia } from "elysia";
import { errorTable, OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { Prediction } from "../domain/predictor.ts";
import type { TaskSpec } from "../domain/task.ts";
import type { Clock } from "../ports/clock.ts";
import type { Admission, Assessed } from "../services/admission.ts";
import type { Dispatcher } from "../services/dispatcher.ts";
import type { EndedStreams } from "../services/ended-streams.ts";
import type { Remaining } from "../services/sessions.ts";
import type { Streams, ViewerStream } from "../services/streams.ts";
import type { TaskArchive } from "../services/task-archive.ts";
import type { TaskRecord } from "../services/task-registry.ts";
import type { RequestContext, RequestContexts } from "./request-context.ts";
import { ErrorEnvelope } from "./schema/errors.ts";
import {
  StreamHeaders,
  StreamQuery,
  TaskAccepted,
  type TaskAcceptedBody,
  TaskDryRun,
  type TaskDryRunBody,
  TaskIdParams,
  TaskList,
  TaskListQuery,
  TaskRequest,
  TaskSubmitQuery,
  TaskView,
  type TaskViewBody,
} from "./schema/tasks.ts";
import { submissionOf } from "./task-submission.ts";

export interface TasksDeps {
  readonly admission: Admission;
  readonly dispatcher: Dispatcher;
  readonly archive: TaskArchive;
  readonly streams: Streams;
  readonly endedStreams: EndedStreams;
  readonly contexts: RequestContexts;
  readonly clock: Clock;
}

type Caller = RequestContext & { readonly keyId: string };

export function tasksRoutes(deps: TasksDeps) {
  const { admission, archive, contexts, dispatcher, endedStreams, streams } = deps;
  return new Elysia({ name: "tasks" })
    .post(
      "/v1/tasks",
      async ({ body, query, request, set, status }) => {
        const caller = contexts.caller(request);
        if (query.dry_run === "true") {
          const assessed = await admission.assess(submissionOf(body, caller));
          Object.assign(set.headers, budgetHeaders(assessed.remaining));
          return dryRunOf(assessed, deps);
        }
        if (!accepts(request, "text/event-stream")) {
          const { record } = await admission.submit(submissionOf(body, caller));
          Object.assign(set.headers, budgetHeaders(dispatcher.remaining(record)));
          return status(202, acceptedOf(record, deps));
        }
        // Before anything is accepted: a task without its stream would run for nobody.
        const place = streams.reserve(caller.keyId);
        try {
          const { record } = await admission.submit(submissionOf(body, caller), true);
          const viewer = streams.open(record, caller.keyId, -1, false, place);
          // Never: a stream beside JSON of the same status is more than Elysia's types can say.
          return sse(viewer, record, budgetHeaders(dispatcher.remaining(record))) as never;
        } catch (error) {
          place.release();
          throw error;
        }
      },
      {
        body: TaskRequest,
        query: TaskSubmitQuery,
        response: { 200: TaskDryRun, 202: TaskAccepted, 400: ErrorEnvelope },
        detail: { tags: ["tasks"] },
      },
    )
    .get(
      "/v1/tasks",
      ({ query, request }) => {
        const caller = contexts.caller(request);
        const limit = query.limit ?? limits.listPageDefault;
        const found = archive.list({
          keyId: caller.admin ? null : caller.keyId,
          state: query.state ?? null,
          sessionId: query.session_id?.toLowerCase() ?? null,
          before: query.cursor === undefined ? null : ordinalOf(query.cursor),
          limit: limit + 1,
        });
        const page = found.slice(0, limit);
        const last = page[page.length - 1];
        return {
          tasks: page.map((record) => viewOf(record, deps)),
          next_cursor: found.length > limit && last !== undefined ? String(last.ordinal) : null,
        };
      },
      { query: TaskListQuery, response: { 200: TaskList }, detail: { tags: ["tasks"] } },
    )
    .get(
      "/v1/tasks/:id",
      ({ params, request }) => viewOf(owned(archive, params.id, contexts.caller(request)), deps),
      { params: TaskIdParams, response: { 200: TaskView }, detail: { tags: ["tasks"] } },
    )
    .get(
      "/v1/tasks/:id/stream",
      async ({ params, query, headers, request }) => {
        const caller = contexts.caller(request);
        const record = await endedStreams.withLog(owned(archive, params.id, caller));
        const lastEventId = headers["last-event-id"];
        const after = lastEventId !== undefined ? Number(lastEventId) : (query.after ?? -1);
        // Nothing is left to tell. An EventSource comes back after every end of a stream; only 204 stops it.
        if (record.log.sealed && after >= record.log.length - 1)
          return new Response(null, { status: 204, headers: { "x-task-id": record.spec.taskId } });
        // Who asks for the head only is no viewer: one who came and went would end the task.
        if (request.method === "HEAD") return sse(null, record);
        // Whoever looks at another key's task does not decide about it by leaving.
        const observes = query.observe === "1" || caller.keyId !== record.spec.keyId;
        return sse(streams.open(record, caller.keyId, after, observes), record);
      },
      { params: TaskIdParams, query: StreamQuery, headers: StreamHeaders, detail: { tags: ["tasks"] } },
    )
    .post(
      "/v1/tasks/:id/cancel",
      async ({ params, request, set }) => {
        owned(archive, params.id, contexts.caller(request));
        await dispatcher.cancel(params.id.toLowerCase(), "client");
        // The viewers' CANCELED frames leave before the 204 does.
        await deps.clock.yieldTurn();
        set.status = 204;
      },
      { params: TaskIdParams, detail: { tags: ["tasks"] } },
    );
}

function owned(archive: TaskArchive, taskId: string, caller: Caller): TaskRecord {
  const record = archive.find(taskId.toLowerCase());
  if (record !== null && (caller.admin || record.spec.keyId === caller.keyId)) return record;
  throw new OrchestratorError(
    "NOT_FOUND",
    "no such task: it was never accepted with this key, or ended so long ago that it was forgotten",
  );
}

const accepts = (request: Request, type: string): boolean =>
  (request.headers.get("accept") ?? "").toLowerCase().includes(type);

function sse(
  viewer: ViewerStream | null,
  record: TaskRecord,
  more: Readonly<Record<string, string>> = {},
): Response {
  // Bun's direct stream writes straight to the socket, without a queue of its own: what was not written can still
  // be withheld after a cancel, and each token costs a tenth less CPU than with a pull-based one (measured).
  const stream =
    viewer === null
      ? null
      : new ReadableStream<Uint8Array>({
          type: "direct",
          pull: (controller) => viewer.pump(controller),
          cancel: () => viewer.leave(),
        });
  return new Response(stream, {
    headers: {
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-cache, no-transform",
      // nginx would collect the tokens into blocks.
      "x-accel-buffering": "no",
      "x-task-id": record.spec.taskId,
      ...more,
    },
  });
}

/** What is left to spend; absent where no budget is set. */
function budgetHeaders(remaining: Remaining | null): Record<string, string> {
  const headers: Record<string, string> = {};
  if (remaining === null) return headers;
  const { tokens, timeMs, cost } = remaining;
  if (tokens !== null) headers["x-budget-tokens-remaining"] = String(tokens);
  if (timeMs !== null) headers["x-budget-time-remaining-ms"] = String(Math.floor(timeMs));
  if (cost !== null) headers["x-budget-cost-remaining"] = String(cost);
  return headers;
}

const streamUrlOf = (taskId: string): string => `/v1/tasks/${taskId}/stream`;

function acceptedOf({ spec, promise }: TaskRecord, deps: TasksDeps): TaskAcceptedBody {
  const { taskId } = spec;
  return { task_id: taskId, ...promiseOf(spec, promise, deps), stream_url: streamUrlOf(taskId) };
}

function dryRunOf({ spec, promise, choice }: Assessed, deps: TasksDeps): TaskDryRunBody {
  const pools = (choice?.reasons ?? []).map(({ poolId, reason }) => ({ pool_id: poolId, reason }));
  return {
    dry_run: true,
    ...promiseOf(spec, promise, deps),
    placement: { fallback: choice?.fallback ?? false, pools },
  };
}

function promiseOf({ sessionId, poolId }: TaskSpec, promise: Prediction, { dispatcher }: TasksDeps) {
  const { interactive, batch, capacity } = dispatcher.view.depth(poolId);
  return {
    session_id: sessionId,
    pool_id: poolId,
    queue_position: promise.queuePosition,
    predicted_start_ms: promise.startMs,
    predicted_start_low_ms: promise.startLowMs,
    predicted_start_high_ms: promise.startHighMs,
    predicted_end_ms: promise.endMs,
    on_time_probability: promise.onTimeProbability,
    prediction_basis: promise.basis,
    // No place is left: the next would be refused until one is free.
    backoff_ms: interactive + batch >= capacity ? dispatcher.forecast.retryAfterMs(poolId) : 0,
  };
}

function viewOf(record: TaskRecord, deps: TasksDeps): TaskViewBody {
  const { spec } = record;
  const live = record.finishedMs === null ? deps.dispatcher.forecast.ofLive(record) : null;
  const waits = record.state === "queued" ? live : null;
  return {
    task_id: spec.taskId,
    session_id: spec.sessionId,
    state: record.state,
    workload: spec.workload,
    pool_id: spec.poolId,
    replica_id: record.replicaId,
    model_ref: spec.modelRef,
    priority: spec.priority,
    seed: spec.seed,
    queue_position: waits?.queuePosition ?? null,
    predicted_start_ms: waits?.startMs ?? null,
    predicted_start_low_ms: waits?.startLowMs ?? null,
    predicted_start_high_ms: waits?.startHighMs ?? null,
    predicted_end_ms: live?.endMs ?? null,
    on_time_probability: live?.onTimeProbability ?? null,
    prediction_basis: live?.basis ?? null,
    waiting_for: record.state === "queued" ? waitingFor(record, deps.dispatcher) : null,
    created_ms: Math.round(record.createdMs),
    started_ms: rounded(record.startedMs),
    finished_ms: rounded(record.finishedMs),
    attempts: record.attempts,
    tokens_in: record.tokensIn,
    tokens_out: record.tokensOut,
    finish_reason: record.finishReason,
    error:
      record.error === null ? null : { ...record.error, retriable: errorTable[record.error.code].retriable },
    artifact_id: record.artifactId,
    stream_url: streamUrlOf(spec.taskId),
    metadata: { ...spec.metadata },
  };
}

const rounded = (ms: number | null): number | null => (ms === null ? null : Math.round(ms));

function waitingFor(record: TaskRecord, dispatcher: Dispatcher): string {
  const { poolId, priority, determinism } = record.spec;
  const { ready, spec, loadingSinceMs } = dispatcher.runtime(poolId);
  if (dispatcher.view.isDrained(poolId))
    return `pool ${poolId} is drained: nothing starts there before an operator resumes it`;
  if (dispatcher.view.lacksMemory(poolId) && loadingSinceMs === null)
    return `the model of pool ${poolId} is not in memory: it is loaded as soon as there is room, see residence in GET /v1/pools`;
  if (ready.size === 0)
    return `pool ${poolId} has no ready replica yet: its model loads or its engine restarts`;
  let slots = 0;
  let busy = 0;
  for (const [replicaId, { identity }] of ready) {
    slots += identity.slots;
    busy += dispatcher.view.slotsBusy(replicaId);
  }
  if (determinism === "strict")
    return `a strict task runs alone: none of the ${ready.size} ready replicas of pool ${poolId} is empty and its turn`;
  if (busy < slots)
    return `the free slots of pool ${poolId} are kept: for a strict task, which runs alone, or because the replica that holds the session is soon free`;
  const { interactive } = dispatcher.view.depth(poolId);
  const ahead = priority === "batch" && interactive > 0 ? "interactive tasks and " : "";
  return `all ${slots} slots of pool ${poolId} are busy (${ready.size} of ${spec.replicas} replicas ready): ${ahead}tasks that came first go first`;
}

function ordinalOf(cursor: string): number {
  const ordinal = Number(cursor);
  if (Number.isSafeInteger(ordinal) && ordinal > 0) return ordinal;
  throw new OrchestratorError(
    "INVALID_PARAMS",
    "cursor is not one that this server gave out: use next_cursor as it came",
    {
      details: { field: "cursor" },
    },
  );
}
