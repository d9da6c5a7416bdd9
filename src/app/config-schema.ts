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
import { trustPolicies } from "../domain/catalog.ts";
import { allowedHostForm, allowedHostsDefault } from "../domain/fetch-policy.ts";
import { limits } from "../domain/limits.ts";
import { reloadStrategies } from "../domain/pool-reload.ts";
import type { Fairness } from "../domain/queue.ts";
import { logLevels } from "../ports/telemetry.ts";
import { artifactsSchema } from "./config-schema-artifacts.ts";
import { devicesSchema, residencySchema } from "./config-schema-devices.ts";
import {
  integer,
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
import { poolSchema } from "./config-schema-pools.ts";

const rate = Type.Object(
  {
    per_second: Type.Number({ exclusiveMinimum: 0, maximum: outer.rateMax }),
    burst: Type.Integer({ minimum: 1, maximum: outer.rateMax }),
  },
  { additionalProperties: false, description: "A token bucket: requests a second, and how many at once." },
);

/** Bounds on spending; null in one of them: none. */
const spending = {
  tokens: nullable(
    Type.Integer({ minimum: 1, maximum: limits.budgetTokensMax }),
    "Tokens of prompts and outputs together; null: no bound.",
  ),
  time_ms: nullable(
    Type.Integer({ minimum: 1, maximum: limits.budgetTimeMsMax }),
    "Time on slots; null: no bound.",
  ),
  cost: nullable(
    Type.Number({ minimum: 0, maximum: limits.budgetCostMax }),
    "In the unit of the pools' prices (0: only what is free); null: no bound.",
  ),
};

const keyBudget = Type.Object(
  {
    ...spending,
    window_ms: Type.Integer({
      minimum: 1000,
      maximum: limits.budgetWindowMsMax,
      description: "The time that the allowance is for; then there is a new one.",
    }),
  },
  { additionalProperties: false, description: "At least one of tokens, time_ms and cost." },
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
    budget: nullable(
      keyBudget,
      "What all of the key's tasks together may spend per window of time; null: no bound.",
    ),
  },
  { additionalProperties: false },
);

const fairnesses = ["fifo", "per-key"] as const satisfies readonly Fairness[];
const durabilities = ["power", "process"] as const;
export const durabilityDefault = "power";

const storage = Type.Object(
  {
    durability: optional(
      oneOf(durabilities, {
        default: durabilityDefault,
        description:
          "What an accepted task survives: power, also a power cut (synced to disk before the 202); process, kill -9 of the daemon only.",
      }),
    ),
  },
  { additionalProperties: false },
);

const authModes = ["required", "loopback-open", "off"] as const;

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
        artifact_bytes: integer(
          1024,
          limits.bodyBytesMax,
          limits.artifactBytesDefault,
          "Largest artifact document; attachments have a bound of their own.",
        ),
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
        fair: optional(
          oneOf(fairnesses, {
            default: "fifo",
            description:
              "Within a class: fifo, the order of acceptance; per-key, keys in turn by the service that they were given (deficit round robin), each key's in the order of acceptance.",
          }),
        ),
      },
      "What is taken.",
    ),
    sessions: section(
      {
        ttl_ms: milliseconds(
          1000,
          limits.sessionTtlMsDefault,
          "After this without a task a session is forgotten.",
        ),
        max_turns: integer(1, outer.turnsMax, limits.sessionTurnsMaxDefault, "Tasks of one session."),
        budget: section(spending, "What a session may spend; its tasks can only lower it."),
      },
      "Turns that share context and a budget.",
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
        cut_at_deadline: optional(
          Type.Boolean({
            default: false,
            description: "Whether a running task is cut when its deadline passes, or goes on to its end.",
          }),
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
        microbatch_ms: milliseconds(
          0,
          limits.microbatchMsDefault,
          "Tokens are sent together with those of so long after the last ones; 0: each at once. The first and the end never wait.",
          limits.microbatchMsMax,
        ),
        metrics_every_ms: milliseconds(10, limits.metricsEveryMsDefault, "Metrics events of a stream."),
      },
      "Event streams.",
    ),
    artifacts: artifactsSchema,
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
          {
            enabled: optional(
              Type.Boolean({ default: true, description: "false: nothing is ever fetched." }),
            ),
            allow_hosts: optional(
              Type.Array(text(allowedHostForm), {
                maxItems: outer.listMax,
                default: [...allowedHostsDefault],
                description:
                  "Who may be asked for a model, redirects included: names (https, internet addresses only), or addresses of your own (also http).",
              }),
            ),
          },
          "Models that lie elsewhere, fetched into dir when the catalog or a pool asks for them.",
        ),
        trust: optional(
          oneOf(trustPolicies, {
            default: "permissive",
            description:
              "What may be loaded. permissive: what was not found wrong; strict: what was verified against the digest of its catalog entry.",
          }),
        ),
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
    storage: optional(
      Type.Union([storage, Type.Null()], { default: {}, description: "State on disk; null: the defaults." }),
    ),
    telemetry: section({ otlp_endpoint: laterNull() }, "Not supported by this version."),
    reload: section(
      {
        watch: optional(
          Type.Boolean({
            default: true,
            description: "Whether a change of this file is taken up by itself; SIGHUP does it in any case.",
          }),
        ),
        strategy: optional(
          oneOf(reloadStrategies, {
            default: "recreate",
            description:
              "How engines of a changed pool are replaced: recreate, one after the other; surge, the new ones load beside the old ones.",
          }),
        ),
        deadline_ms: milliseconds(
          0,
          limits.drainDeadlineMsDefault,
          "What runs in a pool that is changed or taken out may go on this long.",
        ),
      },
      "This file, read again by a running daemon.",
    ),
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
    devices: devicesSchema,
    residency: residencySchema,
    pools: optional(
      Type.Array(poolSchema, {
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
export type Durability = (typeof durabilities)[number];
export type AuthMode = (typeof authModes)[number];
export type SpendingSpec = FilledConfigFile["sessions"]["budget"];
export type RateSpec = FilledConfigFile["limits"]["rate"];
