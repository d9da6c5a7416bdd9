/**
 * The HTTP application without its services: the real router, middleware and schemas. Either with canned
 * answers, on a real socket, for the tests of the middleware; or with the plugins of src/api that nobody may ask
 * anything, for the tests that compare routes with the contracts. Whoever calls `startTestApp` calls its `stop`.
 */
import { type AnyElysia, Elysia } from "elysia";
import { apiVersion } from "../../src/api/api-version.ts";
import { artifactsRoutes } from "../../src/api/artifacts.ts";
import { capabilitiesRoutes } from "../../src/api/capabilities.ts";
import { catalogRoutes } from "../../src/api/catalog.ts";
import { configRoutes } from "../../src/api/config.ts";
import { devicesRoutes } from "../../src/api/devices.ts";
import { engineLogsRoutes } from "../../src/api/engine-logs.ts";
import { observabilityRoutes } from "../../src/api/observability.ts";
import { poolControlRoutes } from "../../src/api/pool-control.ts";
import { poolsRoutes } from "../../src/api/pools.ts";
import { RequestContexts } from "../../src/api/request-context.ts";
import { Capabilities } from "../../src/api/schema/capabilities.ts";
import { ErrorEnvelope } from "../../src/api/schema/errors.ts";
import { Healthz, Readyz } from "../../src/api/schema/ops.ts";
import { PoolHealth, PoolIdParams, PoolList } from "../../src/api/schema/pools.ts";
import { SessionIdParams, SessionView } from "../../src/api/schema/sessions.ts";
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
  TaskView,
  type TaskViewBody,
} from "../../src/api/schema/tasks.ts";
import { sessionsRoutes } from "../../src/api/sessions.ts";
import { tasksRoutes } from "../../src/api/tasks.ts";
import { type Listening, listen } from "../../src/app/listen.ts";
import type { AuthDeps, VerifiedKey } from "../../src/app/middleware/auth.ts";
import { createRouter } from "../../src/app/router.ts";
import { OrchestratorError } from "../../src/domain/errors.ts";
import type { Clock, Entropy } from "../../src/ports/clock.ts";
import type { Log, LogFields } from "../../src/ports/telemetry.ts";

export const testKey = "test-key-of-somebody";
export const slowKey = "test-key-with-a-rate";
export const taskId = "0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e";

/** A clock that stands still until told to move; nothing under test here sets timers. */
export class StillClock implements Clock {
  now = 1_700_000_000_000;
  nowMs(): number {
    return this.now;
  }
  setTimer(): { cancel(): void } {
    throw new Error("the HTTP edge sets no timers");
  }
  soon(fn: () => void): void {
    queueMicrotask(fn);
  }
  yieldTurn(): Promise<void> {
    return Promise.resolve();
  }
}

/** Counts instead of drawing. */
export class CountingEntropy implements Entropy {
  #next = 0;
  uuid(): string {
    this.#next += 1;
    return `00000000-0000-4000-8000-${String(this.#next).padStart(12, "0")}`;
  }
  uint32(): number {
    this.#next += 1;
    return this.#next;
  }
  unit(): number {
    return 0;
  }
  secret(): string {
    return this.uuid();
  }
}

export interface LogLine {
  readonly level: string;
  readonly event: string;
  readonly fields: LogFields;
  readonly cause: unknown;
}

export class RecordingLog implements Log {
  readonly lines: LogLine[] = [];
  readonly debug = (event: string, fields: LogFields) => this.#add("debug", event, fields);
  readonly info = (event: string, fields: LogFields) => this.#add("info", event, fields);
  readonly warn = (event: string, fields: LogFields) => this.#add("warn", event, fields);
  readonly error = (event: string, fields: LogFields, cause?: unknown) =>
    this.#add("error", event, fields, cause);
  #add(level: string, event: string, fields: LogFields, cause?: unknown): void {
    this.lines.push({ level, event, fields, cause });
  }
}

export const verifyTestKey = (presented: string): VerifiedKey | null => {
  if (presented === testKey) return { keyId: "somebody", admin: false, rate: null };
  if (presented === slowKey) return { keyId: "slow", admin: false, rate: { perSecond: 0.4, burst: 2 } };
  return null;
};

export interface TestAppOptions {
  readonly auth?: Partial<AuthDeps>;
  readonly maxBodyBytes?: number;
  readonly plugins?: readonly AnyElysia[];
  /** The plugins of src/api instead of the canned ones, over services that do not exist: to look, not to ask. */
  readonly shellsOnly?: boolean;
}

export interface TestApp {
  readonly app: AnyElysia;
  readonly contexts: RequestContexts;
  readonly log: RecordingLog;
  readonly clock: StillClock;
  /** The policies of the bounds that held requests back. */
  readonly limited: readonly string[];
}

export function buildApp(options: TestAppOptions = {}): TestApp {
  const contexts = new RequestContexts();
  const log = new RecordingLog();
  const clock = new StillClock();
  const limited: string[] = [];
  const app = createRouter({
    contexts,
    clock,
    entropy: new CountingEntropy(),
    log,
    auth: {
      mode: "required",
      verify: verifyTestKey,
      local: { keyId: "local", admin: true, rate: null },
      ...options.auth,
    },
    limited: (policy) => limited.push(policy),
    maxBodyBytes: () => options.maxBodyBytes ?? 64 * 1024,
    plugins: [...(options.shellsOnly ? shellPlugins() : contractPlugins()), ...(options.plugins ?? [])],
  });
  return { app, contexts, log, clock, limited };
}

export interface RunningTestApp extends TestApp {
  readonly url: string;
  readonly port: number;
  stop(): Promise<void>;
}

export function startTestApp(options: TestAppOptions = {}): RunningTestApp {
  const built = buildApp(options);
  const listening: Listening = listen(built.app, {
    host: "127.0.0.1",
    port: 0,
    tls: null,
    log: built.log,
    entropy: new CountingEntropy(),
  });
  return { ...built, url: listening.url, port: listening.port, stop: () => listening.stop(true) };
}

export const sampleAccepted: TaskAcceptedBody = {
  task_id: taskId,
  session_id: null,
  pool_id: "demo",
  queue_position: 0,
  predicted_start_ms: 0,
  predicted_start_low_ms: 0,
  predicted_start_high_ms: 0,
  predicted_end_ms: 1200,
  on_time_probability: null,
  prediction_basis: "warm_up",
  backoff_ms: 0,
  stream_url: `/v1/tasks/${taskId}/stream`,
};

const sampleTask: TaskViewBody = {
  task_id: taskId,
  session_id: null,
  state: "queued",
  workload: "completion",
  pool_id: "demo",
  replica_id: null,
  model_ref: "mock:words",
  priority: "interactive",
  seed: 7,
  queue_position: 0,
  predicted_start_ms: 10,
  predicted_start_low_ms: 5,
  predicted_start_high_ms: 20,
  predicted_end_ms: 1200,
  on_time_probability: null,
  prediction_basis: "warm_up",
  waiting_for: "The pool demo is loading its model.",
  created_ms: 1_700_000_000_000,
  started_ms: null,
  finished_ms: null,
  attempts: 0,
  tokens_in: null,
  tokens_out: 0,
  finish_reason: null,
  error: null,
  artifact_id: null,
  stream_url: `/v1/tasks/${taskId}/stream`,
  metadata: {},
};

export const sampleStream = [
  'id: 1\nevent: token\ndata: {"t":"Hello","i":0}\n\n',
  'id: 2\nevent: token\ndata: {"t":" world","i":1}\n\n',
];

const eventStream = (): Response =>
  new Response(
    new ReadableStream({
      start(controller) {
        for (const frame of sampleStream) controller.enqueue(new TextEncoder().encode(frame));
        controller.close();
      },
    }),
    { headers: { "Content-Type": "text/event-stream", "Cache-Control": "no-cache, no-transform" } },
  );

const errors = {
  400: ErrorEnvelope,
  401: ErrorEnvelope,
  403: ErrorEnvelope,
  429: ErrorEnvelope,
  500: ErrorEnvelope,
};

/** The real plugins: their routes and schemas are there, the first request would fail. */
function shellPlugins(): AnyElysia[] {
  const nothing = {} as never;
  return [
    tasksRoutes({
      admission: nothing,
      dispatcher: nothing,
      archive: nothing,
      streams: nothing,
      endedStreams: nothing,
      contexts: nothing,
      clock: nothing,
    }),
    poolsRoutes({ pools: nothing, contexts: nothing }),
    poolControlRoutes({ pools: nothing, drains: nothing, reloads: nothing, contexts: nothing }),
    devicesRoutes({ lending: nothing, contexts: nothing }),
    engineLogsRoutes({ engineLogs: nothing, streams: nothing, contexts: nothing }),
    sessionsRoutes({ sessions: nothing, contexts: nothing, clock: nothing }),
    artifactsRoutes({ artifacts: nothing, contexts: nothing }),
    catalogRoutes({ catalog: nothing, contexts: nothing }),
    capabilitiesRoutes({ capabilities: nothing }),
    configRoutes({ config: nothing, contexts: nothing }),
    observabilityRoutes({ readiness: nothing, metrics: nothing }),
  ];
}

const sampleSession = {
  ttl_ms_remaining: 600_000,
  turns: 1,
  kv_bytes: 0,
  kv_warmth: false,
  tokens_budget_remaining: null,
  time_budget_remaining_ms: null,
  cost_budget_remaining: null,
};

/** Every route of the contract with canned answers. */
function contractPlugins(): AnyElysia[] {
  const tasks = new Elysia()
    .post(
      "/v1/tasks",
      ({ body, request, set }) => {
        if (givenInputs(body).length !== 1) {
          throw new OrchestratorError("INVALID_PARAMS", "Give exactly one of prompt, messages and inputs.");
        }
        if (request.headers.get("accept") === "text/event-stream") return eventStream();
        set.status = 202;
        return sampleAccepted;
      },
      {
        body: TaskRequest,
        response: {
          202: TaskAccepted,
          ...errors,
          409: ErrorEnvelope,
          413: ErrorEnvelope,
          503: ErrorEnvelope,
        },
      },
    )
    .get("/v1/tasks", () => ({ tasks: [sampleTask], next_cursor: null }), {
      query: TaskListQuery,
      response: { 200: TaskList, ...errors },
    })
    .get("/v1/tasks/:id", ({ params }) => ({ ...sampleTask, task_id: params.id }), {
      params: TaskIdParams,
      response: { 200: TaskView, ...errors, 404: ErrorEnvelope },
    })
    .get("/v1/tasks/:id/stream", () => eventStream(), {
      params: TaskIdParams,
      query: StreamQuery,
      headers: StreamHeaders,
      response: { ...errors, 404: ErrorEnvelope },
    })
    .post(
      "/v1/tasks/:id/cancel",
      ({ set }) => {
        set.status = 204;
      },
      { params: TaskIdParams, response: { ...errors, 404: ErrorEnvelope } },
    );
  const sessions = new Elysia()
    .get("/v1/sessions/:id", ({ params }) => ({ ...sampleSession, session_id: params.id }), {
      params: SessionIdParams,
      response: { 200: SessionView, ...errors, 404: ErrorEnvelope },
    })
    .delete(
      "/v1/sessions/:id",
      ({ set }) => {
        set.status = 204;
      },
      { params: SessionIdParams, response: { ...errors, 404: ErrorEnvelope } },
    );
  const control = new Elysia()
    .get("/v1/capabilities", () => ({ api_version: apiVersion, engines: [], pools: [], models: [] }), {
      response: { 200: Capabilities, ...errors },
    })
    .get("/v1/pools", () => ({ pools: [] }), { response: { 200: PoolList, ...errors } })
    .get(
      "/v1/pools/:id/health",
      () => {
        throw new OrchestratorError("NOT_FOUND", "No such pool.");
      },
      { params: PoolIdParams, response: { 200: PoolHealth, ...errors, 404: ErrorEnvelope } },
    );
  const operations = new Elysia()
    .get(
      "/metrics",
      () => new Response("# HELP x\nx 1\n", { headers: { "Content-Type": "text/plain; version=0.0.4" } }),
    )
    .get("/healthz", () => ({ status: "ok" as const, uptime_ms: 5 }), { response: { 200: Healthz } })
    .get(
      "/readyz",
      ({ set }) => {
        set.status = 503;
        return { ready: false, reasons: ["no pool"] };
      },
      { response: { 200: Readyz, 503: Readyz } },
    );
  const nothing = {} as never;
  return [
    tasks,
    sessions,
    artifactsRoutes({ artifacts: nothing, contexts: nothing }),
    catalogRoutes({ catalog: nothing, contexts: nothing }),
    configRoutes({ config: nothing, contexts: nothing }),
    engineLogsRoutes({ engineLogs: nothing, streams: nothing, contexts: nothing }),
    poolControlRoutes({ pools: nothing, drains: nothing, reloads: nothing, contexts: nothing }),
    devicesRoutes({ lending: nothing, contexts: nothing }),
    control,
    operations,
  ];
}
