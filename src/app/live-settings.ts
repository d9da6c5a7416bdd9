/**
 * The parts of the configuration that a running daemon takes up, as the objects that its components hold on to. The
 * composition root hands them out and app/config-reload.ts calls `take`.
 *
 * Always holds: whoever reads one of them at the moment of use reads what is in force; nobody keeps a copy.
 */
import { limits as bounds } from "../domain/limits.ts";
import { type Config, isLoopback } from "./config.ts";
import { allowancesOf } from "./config-keys.ts";
import { allowedOf } from "./config-models.ts";
import type { AuthMode } from "./config-schema.ts";

/**
 * Without keys a daemon listens on a loopback address only; one that listens elsewhere until its next start goes on asking
 * for them, whatever the file says.
 */
export const asksForKeysStill = (started: Config, { auth }: Config): boolean =>
  auth.mode === "off" && !isLoopback(started.addr.host);

const rulesOf = (config: Config, started: Config) => {
  const { admission, artifacts, limits, models, restart, sessions, shutdown, streaming, tasks } = config;
  const { heartbeatMs, disconnectGraceMs, microbatchMs } = streaming;
  const { perSecond, burst } = limits.rate;
  const authMode: AuthMode = asksForKeysStill(started, config) ? "required" : config.auth.mode;
  return {
    sessions: { ...sessions },
    keys: { allowances: allowancesOf(config.auth.keys) },
    streams: { heartbeatMs, disconnectGraceMs, microbatchMs, streamsPerKeyMax: limits.streamsPerKey },
    admission: {
      defaultMaxTokens: admission.maxTokensDefault,
      defaultDeadlineMs: admission.deadlineMsDefault,
    },
    dispatcher: {
      cutAtDeadline: tasks.cutAtDeadline,
      minOnTimeProbability: admission.minOnTimeProbability,
    },
    artifacts: {
      attachmentBytesMax: bounds.attachmentBytesMax,
      artifactBytesMax: artifacts.documentBytesMax,
      bytesMax: artifacts.bytesMax,
      maxAgeMs: artifacts.maxAgeMs,
    },
    transcripts: { policy: artifacts.transcripts, bytesMax: artifacts.documentBytesMax },
    models: {
      trust: models.trust,
      fetch: { enabled: models.fetch.enabled, allowed: allowedOf(models) },
      dir: models.dir,
      roots: models.roots,
      allowed: allowedOf(models),
    },
    rateLimits: { requestsPerSecond: perSecond, burst, streamsPerKey: limits.streamsPerKey },
    http: { authMode, bodyBytesMax: limits.bodyBytes, rate: limits.rate },
    shutdown: { ...shutdown },
    restart: { ...restart },
  };
};

/** Read by components; they have no business writing them. */
export type Rules = {
  readonly [N in keyof ReturnType<typeof rulesOf>]: Readonly<ReturnType<typeof rulesOf>[N]>;
};

export class LiveSettings {
  readonly rules: Rules;
  readonly #taken: ((config: Config) => void)[] = [];

  /** `started`: as the daemon was started with; where it listens stays. */
  constructor(private readonly started: Config) {
    this.rules = rulesOf(started, started);
  }

  /** For whoever has to be told, and not only to look. */
  whenTaken(tell: (config: Config) => void): void {
    this.#taken.push(tell);
  }

  /** From now on this holds. */
  take(config: Config): void {
    const next = rulesOf(config, this.started);
    for (const name of Object.keys(next) as (keyof Rules)[]) Object.assign(this.rules[name], next[name]);
    for (const tell of this.#taken) tell(config);
  }
}
