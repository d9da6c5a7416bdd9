/**
 * What a command in cli/ and the composition root (app/bootstrap.ts) know of each other, so that a command
 * can be read and tested without everything that the root names.
 */
import type { Clock, Entropy } from "../ports/clock.ts";
import type { Log } from "../ports/telemetry.ts";
import type { ApiKeys } from "./api-keys.ts";
import type { BuildInfo } from "./build-info.ts";
import type { Config } from "./config.ts";
import type { ReadModelKind } from "./config-pools.ts";

/** A running daemon. */
export interface Daemon {
  /** Where it listens, with the real port: http://127.0.0.1:8080 */
  readonly url: string;
  /** Drains: running work until shutdown.drainDeadlineMs, then everything is closed, engines included. */
  close(): Promise<void>;
  /** Without waiting: engines are killed, sockets dropped. Idempotent, also during close(). */
  closeNow(): void;
  /** Reads the configuration again. `why` for the log; what comes of it is told there. */
  reload(why: string): void;
  /** For what goes wrong outside of any request. */
  readonly log?: Log;
}

/** The configuration as a start would find it now, with the keys that it names. Reads the disk. */
export type Reread = () =>
  | {
      readonly ok: true;
      readonly config: Config;
      readonly keys: ApiKeys;
      readonly warnings: readonly string[];
    }
  /** Everything that is wrong with it, each with its place. */
  | { readonly ok: false; readonly problems: readonly string[] };

export type Bootstrap = (deps: {
  readonly config: Config;
  readonly keys: ApiKeys;
  readonly buildInfo: BuildInfo;
  readonly reread: Reread;
}) => Promise<Daemon>;

/** What app/bootstrap.ts exports: the commands get their adapters from there and from nowhere else. */
export interface Composition {
  readonly bootstrap: Bootstrap;
  readonly clock: Clock;
  readonly entropy: Entropy;
  readonly readModelKind: ReadModelKind;
}
