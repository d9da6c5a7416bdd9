/**
 * `serve`: from flags to a running daemon, and from a signal to its end. Called by main.ts, which exits with
 * the code that this resolves to.
 *
 * SIGHUP has the daemon read its configuration again. Where that comes from a terminal that is gone, it ends the daemon
 * as SIGTERM does: nobody would.
 *
 * Always holds: the state folder's lock is taken before anything is written and given back after the daemon is
 * closed; the first SIGTERM or SIGINT drains, the second one ends at once; whatever nobody caught ends the
 * daemon with 1, because its state can no longer be trusted.
 */
import { closeSync, openSync, readFileSync } from "node:fs";
import { constants } from "node:os";
import { type OpenedKeys, openKeys } from "../app/api-keys.ts";
import { bannerLines } from "../app/banner.ts";
import { buildInfo } from "../app/build-info.ts";
import { type Config, type ConfigFlags, loadConfig } from "../app/config.ts";
import { formatProblem } from "../app/config-problems.ts";
import type { Composition, Daemon, Reread } from "../app/daemon.ts";
import { isStartError } from "../app/start-error.ts";
import { openStateDir } from "../app/state-dir.ts";
import { problemsText, warningsText } from "./check-config.ts";
import { ignoreClosedTerminal, printError } from "./print.ts";

/** Exit code: 0 never, 1 failure, 2 configuration, 130/143 by signal. */
export async function serve(flags: ConfigFlags, composition: Composition): Promise<number> {
  ignoreClosedTerminal();
  const lifetime = new Lifetime();
  const result = loadConfig({ flags, env: process.env, readModelKind: composition.readModelKind });
  if (!result.ok) {
    await printError(problemsText(result.problems));
    return 2;
  }
  await printError(warningsText(result));
  try {
    return await run(result.config, flags, composition, lifetime);
  } catch (error) {
    if (!isStartError(error)) throw error;
    await printError(`orchestratord: ${error.message}\n`);
    return 1;
  }
}

async function run(
  config: Config,
  flags: ConfigFlags,
  composition: Composition,
  lifetime: Lifetime,
): Promise<number> {
  const stateDir = openStateDir(config.stateDir);
  let minted: string | null = null;
  try {
    const keysOf = ({ auth: { keys: specs, mode } }: Config): OpenedKeys =>
      openKeys({ specs, mode, stateDir: stateDir.path, entropy: composition.entropy });
    const opened = keysOf(config);
    await printError(warningsText({ warnings: [...stateDir.warnings, ...opened.warnings] }));
    minted = opened.minted;
    const reread = rereader(config, flags, composition, keysOf);
    const starting = composition.bootstrap({ config, keys: opened.keys, buildInfo, reread });
    // A second signal does not wait for a start that hangs.
    const daemon = await Promise.race([starting, lifetime.ended]);
    if (typeof daemon === "number") return daemon;
    lifetime.started(daemon);
    const banner = bannerLines({ config, buildInfo, url: daemon.url, keyFile: opened.keyFile });
    await printError(`${[...banner, ...keyLines(minted)].join("\n")}\n`);
    minted = null;
    return await lifetime.ended;
  } finally {
    // A start that fails after the key is stored is the first one all the same: no later one shows it.
    if (minted !== null) await printError(`${keyLines(minted).join("\n")}\n`);
    stateDir.release();
  }
}

/** As the start found its configuration, but for the file: that is the one in use, wherever another may lie by now. */
function rereader(
  { filePath }: Config,
  flags: ConfigFlags,
  { readModelKind }: Composition,
  keysOf: (config: Config) => OpenedKeys,
): Reread {
  return () => {
    const read = loadConfig({ flags, env: process.env, readModelKind, inUse: filePath });
    if (!read.ok) return { ok: false, problems: read.problems.map(formatProblem) };
    try {
      const { keys, warnings, minted, keyFile } = keysOf(read.config);
      // Nobody looks at the terminal any more: whoever may read the state folder finds it there.
      const told = minted === null ? [] : [`no key is configured any more: a first one lies in ${keyFile}`];
      return { ok: true, config: read.config, keys, warnings: [...read.warnings, ...warnings, ...told] };
    } catch (error) {
      if (!isStartError(error)) throw error;
      return { ok: false, problems: [error.message] };
    }
  };
}

/** The one time that a key is shown: on the terminal of the start that made it. */
const keyLines = (minted: string | null): string[] =>
  minted === null ? [] : ["", `  Your key, shown this once: ${minted}`];

type StopSignal = "SIGTERM" | "SIGINT";

/** What may end the daemon, from before it runs: signals, and errors that nobody caught. */
class Lifetime {
  /** Settles once, with the exit code. */
  readonly ended: Promise<number>;
  readonly #end: (code: number) => void;
  #daemon: Daemon | null = null;
  #stopping: StopSignal | null = null;
  #reloadDue = false;
  /** Whether it is to end with its terminal: not where nohup said otherwise. */
  readonly #endsWithTerminal = hasTerminal() && !ignoresHangUp();

  constructor() {
    const { promise, resolve } = Promise.withResolvers<number>();
    this.ended = promise;
    this.#end = resolve;
    for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, () => this.#onSignal(signal));
    process.on("SIGHUP", () => this.#onHangUp());
    process.on("uncaughtException", (error) => this.#crash("uncaught_exception", error));
    process.on("unhandledRejection", (reason) => this.#crash("unhandled_rejection", reason));
  }

  started(daemon: Daemon): void {
    this.#daemon = daemon;
    if (this.#stopping !== null) this.#drain(daemon, this.#stopping);
    else if (this.#reloadDue) daemon.reload("SIGHUP");
  }

  #onHangUp(): void {
    if (this.#endsWithTerminal && !hasTerminal()) {
      if (this.#stopping === null) this.#onSignal("SIGTERM");
      return;
    }
    if (this.#daemon === null) this.#reloadDue = true;
    else if (this.#stopping === null) this.#daemon.reload("SIGHUP");
  }

  #onSignal(signal: StopSignal): void {
    if (this.#stopping !== null) {
      this.#daemon?.closeNow();
      this.#end(exitCodeOf(signal));
      return;
    }
    this.#stopping = signal;
    if (this.#daemon !== null) this.#drain(this.#daemon, signal);
  }

  #drain(daemon: Daemon, signal: StopSignal): void {
    daemon.close().then(
      () => this.#end(exitCodeOf(signal)),
      (error) => this.#crash("close_failed", error),
    );
  }

  #crash(event: string, error: unknown): void {
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    // Both: the log may be what is broken.
    process.stderr.write(`orchestratord: ${event}: ${text}\n`);
    try {
      this.#daemon?.log?.error(
        event,
        { human: "the daemon ends, its state can no longer be trusted" },
        error,
      );
      this.#daemon?.closeNow();
    } finally {
      this.#end(1);
    }
  }
}

/** Whether the process has a terminal that would send it its hang-up. */
function hasTerminal(): boolean {
  try {
    closeSync(openSync("/dev/tty", "r"));
    return true;
  } catch (error) {
    if (error instanceof Error && "code" in error) return false;
    throw error;
  }
}

/** As the process was started, by the kernel's word (proc(5), SigIgn: bit n - 1 for signal n). */
function ignoresHangUp(): boolean {
  const ignored = /^SigIgn:\s*([0-9a-f]+)$/m.exec(readText("/proc/self/status") ?? "")?.[1] ?? "0";
  return (BigInt(`0x${ignored}`) & 1n) === 1n;
}

/** Null: there is no such file here. */
function readText(path: string): string | null {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if (error instanceof Error && "code" in error) return null;
    throw error;
  }
}

const exitCodeOf = (signal: StopSignal): number => 128 + constants.signals[signal];
