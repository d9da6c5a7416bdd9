/**
 * What another configuration changes beside the pools, and what of it a running daemon can take up: pure. Called by
 * app/config-reload.ts; domain/pool-diff.ts does the same for pools.
 *
 * Always holds: every part of the Config is either in force with the reload or told as one that waits for the next start;
 * no secret comes out.
 */
import type { Config } from "./config.ts";
import { Secret } from "./config-credentials.ts";
import { sha256Hex } from "./config-keys.ts";

/** `now`: taken up as the daemon runs. `start`: at the next start. */
interface Part {
  readonly reach: "now" | "start";
  /** As the file names it. */
  readonly key: string;
}
const now = (key: string): Part => ({ reach: "now", key });
const start = (key: string): Part => ({ reach: "start", key });

/** Which file it was, and what is told of pool by pool. */
type Elsewhere = "filePath" | "pools" | "poolsFrom" | "engineBin";
type Parts = {
  readonly [S in Exclude<keyof Config, Elsewhere>]: Part | { readonly [P in keyof Config[S]]: Part };
};

const parts: Parts = {
  addr: start("addr"),
  stateDir: start("state_dir"),
  logLevel: now("log.level"),
  auth: { mode: now("auth.mode"), keys: now("auth.keys") },
  limits: {
    bodyBytes: now("limits.body_bytes"),
    rate: now("limits.rate"),
    streamsPerKey: now("limits.streams_per_key"),
  },
  tls: start("tls"),
  admission: {
    maxTokensDefault: now("admission.default_max_tokens"),
    deadlineMsDefault: now("admission.default_deadline_ms"),
    minOnTimeProbability: now("admission.min_on_time_probability"),
    batchMaxWaitMs: now("admission.batch_max_wait_ms"),
    fair: start("admission.fair"),
  },
  sessions: now("sessions"),
  tasks: now("tasks"),
  streaming: now("streaming"),
  models: now("models"),
  restart: now("restart"),
  artifacts: {
    root: start("artifacts.root"),
    s3: start("artifacts.s3"),
    documentBytesMax: now("limits.artifact_bytes"),
    bytesMax: now("artifacts.max_bytes"),
    maxAgeMs: now("artifacts.max_age_days"),
    transcripts: now("artifacts.transcripts"),
  },
  storage: start("storage"),
  shutdown: now("shutdown"),
  devices: start("devices"),
  residency: start("residency"),
  reload: now("reload"),
};

export interface ConfigDiff {
  /** Keys of the file whose new values hold with the reload. */
  readonly now: readonly string[];
  /** ... and those that hold at the next start. */
  readonly atNextStart: readonly string[];
}

export function configDiff(before: Config, after: Config): ConfigDiff {
  const changed: Part[] = [];
  for (const section of Object.keys(parts) as (keyof Parts)[]) {
    const part = parts[section] as Part | Readonly<Record<string, Part>>;
    const [one, other] = [before[section], after[section]];
    if (isPart(part)) {
      if (textOf(one) !== textOf(other)) changed.push(part);
      continue;
    }
    for (const [name, member] of Object.entries(part))
      if (textOf(memberOf(one, name)) !== textOf(memberOf(other, name))) changed.push(member);
  }
  const keysOf = (reach: Part["reach"]): string[] =>
    changed.filter((part) => part.reach === reach).map(({ key }) => key);
  return { now: keysOf("now"), atNextStart: keysOf("start") };
}

/** SHA-256, hex, of all that a Config says: the same file and surroundings give the same. Secrets are in it as digests. */
export const configDigest = (config: Config): string => sha256Hex(textOf(config));

const isPart = (part: Part | Readonly<Record<string, Part>>): part is Part => typeof part.reach === "string";

const memberOf = (section: unknown, name: string): unknown =>
  typeof section === "object" && section !== null ? (section as Record<string, unknown>)[name] : undefined;

const textOf = (value: unknown): string =>
  JSON.stringify(value, (_, member: unknown) =>
    member instanceof Secret ? sha256Hex(member.reveal()) : member,
  ) ?? "";
