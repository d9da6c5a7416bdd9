/**
 * The shape of the configuration file: every key, its bounds and its default, as one TypeBox schema.
 *
 * app/config.ts validates the file with it and fills the defaults from it, so a default stands nowhere else;
 * scripts/generate-config-schema.ts writes it out as contracts/schemas/config.schema.json.
 *
 * Always holds: after `Value.Default` no property is undefined (what may be absent is null), and a key whose
 * feature this version does not have takes its neutral default only (`x-later`), so that nothing is ever
 * accepted as if it worked.
 */
import { type Static, Type } from "@sinclair/typebox";
import { limits } from "../domain/limits.ts";
import { engineKinds, type MockFault } from "../domain/pool.ts";
import { workloads } from "../domain/task.ts";
import { logLevels } from "../ports/telemetry.ts";
import {
  integer,
  later,
  laterEmpty,
  laterEmptyOrNull,
  laterNull,
  milliseconds,
  msMax,
  nullable,
  oneOf,
  optional,
  outer,
  section,
  text,
} from "./config-schema-kinds.ts";

const rate = Type.Object(
  {
    per_second: Type.Number({ exclusiveMinimum: 0, maximum: outer.rateMax }),
    burst: Type.Integer({ minimum: 1, maximum: outer.rateMax }),
  },
  { additionalProperties: false, description: "A token bucket: requests a second, and how many at once." },
);

const key = Type.Object(
  {
    id: Type.String({
      pattern: "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
      "x-expected": "1 to 64 letters, digits and . _ - (a letter or digit first)",
      description: "The name in logs; never secret.",
    }),
    sha256: nullable(
      Type.String({
        pattern: "^[0-9a-fA-F]{64}$",
        "x-expected": 'the SHA-256 of your key as 64 hexadecimal digits (printf %s "$KEY" | sha256sum)',
      }),
      "SHA-256 of the key.",
    ),
    file: nullable(text("Path"), "A file that holds the key; read at start."),
    admin: optional(Type.Boolean({ default: false, description: "Sees and controls everything." })),
    rate: nullable(rate, "Instead of limits.rate, for this key."),
  },
  { additionalProperties: false },
);

const faultKinds = [
  "crash",
  "stall",
  "late",
  "torn_utf8",
  "wrong_status",
  "diverge",
  "never_ready",
  "load_failure",
] as const satisfies readonly MockFault["kind"][];

const fault = Type.Object(
  {
    kind: oneOf(faultKinds, { description: "What goes wrong." }),
    nth: nullable(
      Type.Integer({ minimum: 1, maximum: 1_000_000_000 }),
      "Which generation, from 1; null: every one.",
    ),
    after_tokens: integer(0, limits.maxTokensMax, 0, "Tokens that still come."),
    delay_ms: milliseconds(0, 0, "For kind late."),
  },
  { additionalProperties: false },
);

const mock = Type.Object(
  {
    token_ms: optional(
      Type.Number({ minimum: 0, maximum: msMax, default: 5, description: "Time per token." }),
    ),
    prefill_ms_per_token: optional(Type.Number({ minimum: 0, maximum: msMax, default: 0.1 })),
    load_ms: milliseconds(0, 0, "Time to load."),
    faults: optional(Type.Array(fault, { maxItems: outer.listMax, default: [] })),
  },
  { additionalProperties: false, description: "The mock engine's behaviour." },
);

const pool = Type.Object(
  {
    id: Type.String({
      pattern: "^[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?$",
      "x-expected": "1 to 64 lower-case letters, digits and . _ - (a letter or digit at both ends)",
    }),
    engine: optional(oneOf(engineKinds, { default: "llamacpp", "x-later": ["openai"] })),
    model: text("file:/absolute.gguf, file:relative.gguf (from models.dir), or mock:words."),
    replicas: integer(1, limits.replicasPerPoolMax, 1, "Engine processes."),
    devices: laterEmptyOrNull(),
    slots: integer(1, limits.slotsPerReplicaMax, 4, "Concurrent sequences of one replica."),
    ctx: nullable(
      Type.Integer({ minimum: 16, maximum: outer.ctxMax }),
      "Tokens of context per slot; null: what the model was trained with, within bounds.",
    ),
    args: optional(
      Type.Array(text("One argument"), {
        maxItems: outer.listMax,
        default: [],
        description: "More llama-server flags.",
      }),
    ),
    env: optional(
      Type.Record(
        Type.String({ pattern: "^[A-Za-z_][A-Za-z0-9_]*$" }),
        Type.String({ maxLength: outer.textCharsMax }),
        {
          additionalProperties: false,
          default: {},
          description: "Environment of the engine, beside the daemon's own.",
        },
      ),
    ),
    preload: optional(Type.Boolean({ default: true, description: "Load at start instead of at first use." })),
    idle_unload_ms: laterNull(),
    queue: section(
      {
        capacity: integer(1, limits.queueCapacityMax, limits.queueCapacityDefault, "Tasks that may wait."),
        full_policy: later("reject", ["drop-lru", "shed-low-priority"]),
      },
      "The pool's queue.",
    ),
    timeouts: section(
      {
        load_ms: milliseconds(1, limits.loadMsDefault, "From the start to ready."),
        first_token_ms: milliseconds(
          1,
          limits.firstTokenMsDefault,
          "Without any sign of life before the first token.",
        ),
        inter_token_ms: milliseconds(1, limits.interTokenMsDefault, "Between two tokens."),
        stop_grace_ms: milliseconds(0, limits.stopGraceMsDefault, "Between SIGTERM and SIGKILL."),
      },
      "Watchdogs.",
    ),
    price: section({ per_1k_tokens_in: later(0), per_1k_tokens_out: later(0) }, "Price."),
    preempt: later(false),
    sampler_profile_version: later("v1"),
    workloads: nullable(
      Type.Array(oneOf(workloads, {}), { minItems: 1, maxItems: workloads.length, uniqueItems: true }),
      "What the model can do; null: what its file says, else completion.",
    ),
    mock: nullable(mock, "Only with engine mock."),
  },
  { additionalProperties: false },
);

export const authModes = ["required", "loopback-open", "off"] as const;

export const configFileSchema = Type.Object(
  {
    addr: optional(
      Type.String({
        default: "0.0.0.0:8080",
        "x-expected": "HOST:PORT",
        description: "HOST:PORT; [::1]:8080 for IPv6.",
      }),
    ),
    state_dir: nullable(
      text("Path"),
      "Default: $XDG_STATE_HOME/orchestratord, else ~/.local/state/orchestratord.",
    ),
    log: section({ level: optional(oneOf(logLevels, { default: "info" })) }, "JSON lines on stdout."),
    auth: section(
      {
        mode: optional(
          oneOf(authModes, { default: "required", description: "off: loopback addresses only." }),
        ),
        keys: optional(Type.Array(key, { maxItems: outer.keysMax, default: [] })),
      },
      "Who may ask.",
    ),
    limits: section(
      {
        body_bytes: integer(1024, limits.bodyBytesMax, limits.bodyBytesDefault, "Largest request body."),
        artifact_bytes: later(8_388_608),
        rate: optional(Type.Object(rate.properties, { ...rate, default: { per_second: 200, burst: 400 } })),
        streams_per_key: integer(
          1,
          outer.streamsPerKeyMax,
          limits.streamsPerKeyDefault,
          "Streams open at once.",
        ),
      },
      "Bounds of the HTTP side, each per key.",
    ),
    tls: section(
      {
        cert: nullable(text("Path"), "PEM certificate chain."),
        key: nullable(text("Path"), "PEM private key."),
      },
      "Both or neither.",
    ),
    admission: section(
      {
        default_max_tokens: integer(
          1,
          limits.maxTokensMax,
          limits.maxTokensDefault,
          "max_tokens where a task names none.",
        ),
        min_on_time_probability: optional(
          Type.Number({
            minimum: 0,
            maximum: 1,
            default: 0.02,
            description: "Below it a deadline counts as infeasible.",
          }),
        ),
        default_deadline_ms: nullable(
          Type.Integer({ minimum: 1, maximum: msMax }),
          "Deadline where a task names none.",
        ),
        batch_max_wait_ms: milliseconds(
          1,
          limits.batchMaxWaitMsDefault,
          "After this a waiting batch task is aged.",
        ),
        fair: later("fifo", ["per-key"]),
      },
      "What is taken.",
    ),
    sessions: section(
      {
        ttl_ms: later(600_000),
        max_turns: later(8),
        budget: section({ tokens: laterNull(), time_ms: laterNull(), cost: laterNull() }, "Budgets."),
      },
      "Not supported by this version.",
    ),
    tasks: section(
      {
        max_attempts: integer(
          1,
          outer.attemptsMax,
          limits.attemptsMax,
          "Attempts without a new token before WORKER_RESET.",
        ),
        retention_ms: milliseconds(
          1000,
          limits.taskRetentionMsDefault,
          "How long the record of an ended task is kept.",
        ),
      },
      "Records of tasks.",
    ),
    streaming: section(
      {
        heartbeat_ms: milliseconds(
          100,
          limits.heartbeatMsDefault,
          "Comment on a quiet stream.",
          outer.heartbeatMsMax,
        ),
        disconnect_grace_ms: milliseconds(
          0,
          limits.disconnectGraceMsDefault,
          "Before a task without viewers is cut.",
        ),
        microbatch_ms: later(0),
        metrics_every_ms: milliseconds(10, limits.metricsEveryMsDefault, "Metrics events of a stream."),
      },
      "Event streams.",
    ),
    artifacts: section(
      { root: laterNull(), max_bytes: later(10_737_418_240), max_age_days: laterNull(), s3: laterNull() },
      "Not supported by this version.",
    ),
    models: section(
      {
        dir: optional(
          Type.String({ minLength: 1, maxLength: outer.textCharsMax, default: "~/.cache/models" }),
        ),
        roots: optional(
          Type.Array(text("Path"), {
            maxItems: outer.listMax,
            default: [],
            description: "Where set, model files lie in models.dir or below one of these.",
          }),
        ),
        fetch: section(
          { enabled: later(false), allow_hosts: laterEmpty() },
          "Not supported by this version.",
        ),
        trust: later("permissive", ["strict"]),
      },
      "Where model files are.",
    ),
    engines: section(
      {
        llamacpp: section(
          {
            bin: optional(
              Type.String({ minLength: 1, maxLength: outer.textCharsMax, default: "llama-server" }),
            ),
          },
          "A path, or a name looked up on PATH.",
        ),
      },
      "Engine programs.",
    ),
    restart: section(
      {
        backoff_ms: milliseconds(1, limits.restartBackoffMsDefault, "First wait before a restart; doubles."),
        backoff_max_ms: milliseconds(1, limits.restartBackoffMsMaxDefault, "Longest wait before a restart."),
        breaker_failures: integer(
          1,
          outer.breakerFailuresMax,
          limits.breakerFailuresDefault,
          "Failed starts that open it.",
        ),
        breaker_window_ms: milliseconds(1, limits.breakerWindowMsDefault, "Within this time."),
      },
      "Restarts of engines.",
    ),
    storage: laterNull(),
    telemetry: section({ otlp_endpoint: laterNull() }, "Not supported by this version."),
    shutdown: section(
      {
        drain_deadline_ms: milliseconds(
          0,
          limits.drainDeadlineMsDefault,
          "Running work may go on this long.",
        ),
      },
      "SIGTERM.",
    ),
    pools: optional(
      Type.Array(pool, {
        maxItems: limits.poolsMax,
        default: [],
        description:
          "Absent or empty: every *.gguf of models.dir on demand, else one pool on the mock engine.",
      }),
    ),
  },
  { additionalProperties: false, title: "orchestratord configuration file" },
);

/** Every property present: what the schema's defaults make of a valid file. */
type Filled<T> = T extends readonly (infer U)[]
  ? readonly Filled<U>[]
  : T extends object
    ? { readonly [K in keyof T]-?: Filled<Exclude<T[K], undefined>> }
    : T;

export type FilledConfigFile = Filled<Static<typeof configFileSchema>>;
export type FilledPool = FilledConfigFile["pools"][number];
export type FilledKey = FilledConfigFile["auth"]["keys"][number];
export type AuthMode = (typeof authModes)[number];
export type RateSpec = FilledConfigFile["limits"]["rate"];
