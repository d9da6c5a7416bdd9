/**
 * /v1/tasks: parse, call one service, shape the answer. The wire models are in schema/tasks.ts.
 * Another key's task is answered as if it did not exist, unless the caller is an admin.
 */
import { Elysia } from "elysia";
import { errorTable, OrchestratorError } from "../domain/errors.ts";
import { grammarDepth } from "../domain/grammar.ts";
import { limits } from "../domain/limits.ts";
import type { Sampling, TaskInput } from "../domain/task.ts";
import type { Clock } from "../ports/clock.ts";
import type { Admission, Submission } from "../services/admission.ts";
import type { Dispatcher } from "../services/dispatcher.ts";
import type { Streams, ViewerStream } from "../services/streams.ts";
import type { TaskRecord, TaskRegistry } from "../services/task-registry.ts";
import type { RequestContext, RequestContexts } from "./request-context.ts";
import { ErrorEnvelope } from "./schema/errors.ts";
import {
  givenInputs,
  StreamHeaders,
  StreamQuery,
  TaskAccepted,
  type TaskAcceptedBody,
  TaskIdParams,
  TaskList,
  TaskListQuery,
  TaskRequest,
  type TaskRequestBody,
  TaskView,
  type TaskViewBody,
} from "./schema/tasks.ts";

export interface TasksDeps {
  readonly admission: Admission;
  readonly dispatcher: Dispatcher;
  readonly registry: TaskRegistry;
  readonly streams: Streams;
  readonly contexts: RequestContexts;
  readonly clock: Clock;
}

type Caller = RequestContext & { readonly keyId: string };

export function tasksRoutes(deps: TasksDeps) {
  const { admission, contexts, dispatcher, registry, streams } = deps;
  return new Elysia({ name: "tasks" })
    .post(
      "/v1/tasks",
      async ({ body, request, set }) => {
        const caller = contexts.caller(request);
        if (!accepts(request, "text/event-stream")) {
          const { record } = await admission.submit(submissionOf(body, caller));
          set.status = 202;
          return acceptedOf(record, deps);
        }
        // Before anything is accepted: a task without its stream would run for nobody.
        const place = streams.reserve(caller.keyId);
        try {
          const { record } = await admission.submit(submissionOf(body, caller));
          return sse(streams.open(record, caller.keyId, -1, false, place), record);
        } catch (error) {
          place.release();
          throw error;
        }
      },
      { body: TaskRequest, response: { 202: TaskAccepted, 400: ErrorEnvelope }, detail: { tags: ["tasks"] } },
    )
    .get(
      "/v1/tasks",
      ({ query, request }) => {
        const caller = contexts.caller(request);
        const limit = query.limit ?? limits.listPageDefault;
        const found = registry.list({
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
      ({ params, request }) => viewOf(owned(registry, params.id, contexts.caller(request)), deps),
      { params: TaskIdParams, response: { 200: TaskView }, detail: { tags: ["tasks"] } },
    )
    .get(
      "/v1/tasks/:id/stream",
      ({ params, query, headers, request }) => {
        const caller = contexts.caller(request);
        const record = owned(registry, params.id, caller);
        // Who asks for the head only is no viewer: one who came and went would end the task.
        if (request.method === "HEAD") return sse(null, record);
        const lastEventId = headers["last-event-id"];
        const after = lastEventId !== undefined ? Number(lastEventId) : (query.after ?? -1);
        // Whoever looks at another key's task does not decide about it by leaving.
        const observes = query.observe === "1" || caller.keyId !== record.spec.keyId;
        return sse(streams.open(record, caller.keyId, after, observes), record);
      },
      { params: TaskIdParams, query: StreamQuery, headers: StreamHeaders, detail: { tags: ["tasks"] } },
    )
    .post(
      "/v1/tasks/:id/cancel",
      async ({ params, request, set }) => {
        owned(registry, params.id, contexts.caller(request));
        await dispatcher.cancel(params.id.toLowerCase(), "client");
        // The viewers' CANCELED frames leave before the 204 does.
        await deps.clock.yieldTurn();
        set.status = 204;
      },
      { params: TaskIdParams, detail: { tags: ["tasks"] } },
    );
}

function owned(registry: TaskRegistry, taskId: string, caller: Caller): TaskRecord {
  const record = registry.find(taskId.toLowerCase());
  if (record !== null && (caller.admin || record.spec.keyId === caller.keyId)) return record;
  throw new OrchestratorError(
    "NOT_FOUND",
    "no such task: it was never accepted with this key, or ended so long ago that it was forgotten",
  );
}

const accepts = (request: Request, type: string): boolean =>
  (request.headers.get("accept") ?? "").toLowerCase().includes(type);

function sse(viewer: ViewerStream | null, record: TaskRecord): Response {
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
    },
  });
}

function submissionOf(body: TaskRequestBody, caller: Caller): Submission {
  return {
    keyId: caller.keyId,
    correlationId: caller.correlationId,
    taskId: body.task_id?.toLowerCase() ?? null,
    sessionId: body.session_id?.toLowerCase() ?? null,
    workload: body.workload ?? null,
    input: inputOf(body),
    modelRef: body.model_ref ?? null,
    engine: body.engine ?? null,
    pinPoolId: pinnedPool(body),
    ctx: body.ctx ?? null,
    priority: body.priority ?? null,
    seed: body.seed ?? null,
    sampling: samplingOf(body),
    maxTokens: body.max_tokens ?? null,
    deadlineMs: body.deadline_ms ?? null,
    expectedTokens: body.expected_tokens ?? null,
    kvHint: body.kv_hint ?? null,
    onDisconnect: body.on_disconnect ?? null,
    metadata: body.metadata ?? {},
    body,
  };
}

function inputOf(body: TaskRequestBody): TaskInput {
  const given = givenInputs(body);
  if (given.length !== 1)
    throw new OrchestratorError(
      "INVALID_PARAMS",
      `exactly one of prompt, messages and inputs is required, ${given.length === 0 ? "none was given" : `${given.join(" and ")} were given`}`,
      { details: { fields: given } },
    );
  if (body.query !== undefined && body.inputs === undefined)
    throw new OrchestratorError(
      "INVALID_PARAMS",
      "query goes with inputs (workload rerank): add inputs or leave it out",
      {
        details: { field: "query" },
      },
    );
  if (body.prompt !== undefined) return { kind: "prompt", prompt: body.prompt };
  if (body.messages !== undefined) return { kind: "messages", messages: body.messages };
  const inputs = body.inputs ?? [];
  return body.query === undefined
    ? { kind: "embedding", inputs }
    : { kind: "rerank", query: body.query, inputs };
}

function pinnedPool({ placement }: TaskRequestBody): string | null {
  if (placement === undefined) return null;
  const { mode, pin_pool_id } = placement;
  if ((mode === "pin") === (pin_pool_id !== undefined)) return pin_pool_id ?? null;
  throw new OrchestratorError(
    "INVALID_PARAMS",
    mode === "pin"
      ? "placement.mode pin needs placement.pin_pool_id"
      : "placement.pin_pool_id goes with placement.mode pin",
    { details: { field: "placement.pin_pool_id" } },
  );
}

function samplingOf({ sampling }: TaskRequestBody): Partial<Sampling> {
  if (sampling === undefined) return {};
  if (sampling.grammar !== undefined && sampling.json_schema !== undefined)
    throw new OrchestratorError(
      "INVALID_PARAMS",
      "sampling.grammar and sampling.json_schema exclude each other: give one",
      {
        details: { field: "sampling.json_schema" },
      },
    );
  if (sampling.grammar !== undefined && grammarDepth(sampling.grammar) > limits.grammarDepthMax)
    throw new OrchestratorError(
      "INVALID_PARAMS",
      `sampling.grammar nests deeper than ${limits.grammarDepthMax} groups: give the inner ones rules of their own`,
      { details: { field: "sampling.grammar" } },
    );
  const asked: Partial<Sampling> = {
    temperature: sampling.temperature as number,
    topP: sampling.top_p as number,
    topK: sampling.top_k as number,
    minP: sampling.min_p as number,
    repeatPenalty: sampling.repeat_penalty as number,
    presencePenalty: sampling.presence_penalty as number,
    frequencyPenalty: sampling.frequency_penalty as number,
    stop: sampling.stop as string[],
    grammar: sampling.grammar as string,
    jsonSchema: sampling.json_schema,
  };
  return Object.fromEntries(Object.entries(asked).filter(([, value]) => value !== undefined));
}

const streamUrlOf = (record: TaskRecord): string => `/v1/tasks/${record.spec.taskId}/stream`;

function acceptedOf(record: TaskRecord, { dispatcher }: TasksDeps): TaskAcceptedBody {
  const { promise, spec } = record;
  const { interactive, batch, capacity } = dispatcher.view.depth(spec.poolId);
  return {
    task_id: spec.taskId,
    session_id: spec.sessionId,
    pool_id: spec.poolId,
    queue_position: promise.queuePosition,
    predicted_start_ms: promise.startMs,
    predicted_end_ms: promise.endMs,
    on_time_probability: promise.onTimeProbability,
    // This one took the last place: the next would be refused until one is free.
    backoff_ms: interactive + batch >= capacity ? dispatcher.forecast.retryAfterMs(spec.poolId) : 0,
    stream_url: streamUrlOf(record),
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
    predicted_end_ms: live?.endMs ?? null,
    on_time_probability: live?.onTimeProbability ?? null,
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
    stream_url: streamUrlOf(record),
    metadata: { ...spec.metadata },
  };
}

const rounded = (ms: number | null): number | null => (ms === null ? null : Math.round(ms));

function waitingFor(record: TaskRecord, dispatcher: Dispatcher): string {
  const { poolId, priority } = record.spec;
  const { ready, spec } = dispatcher.runtime(poolId);
  if (ready.size === 0)
    return `pool ${poolId} has no ready replica yet: its model loads or its engine restarts`;
  let slots = 0;
  for (const { identity } of ready.values()) slots += identity.slots;
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
