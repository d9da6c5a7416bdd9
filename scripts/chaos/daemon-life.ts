/**
 * The daemon of a chaos run over its lives: killed and started again on the same folder and address, its engines
 * killed by the pid that it tells. Keeps the log of every life for evidence.
 *
 * Always holds: it kills only what the kernel says is of its own folder; after `end` nothing of it runs.
 */
import { mkdtempSync, realpathSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type RunningDaemon, type Settings, startDaemon } from "../../test/support/daemon.ts";
import { waitFor } from "../../test/support/wait.ts";
import type { Server } from "./stream.ts";

export interface LifeOptions {
  readonly command: readonly string[];
  readonly poolId: string;
  readonly settings: Settings;
  /** Told when it ends by itself. */
  readonly onDeath: (why: string) => void;
}

interface PoolHealth {
  readonly replicas: readonly { readonly pid: number | null }[];
}

/** Below the ports that the kernel gives to clients, so that none of them can take it while nobody listens. */
const portsFrom = 20_000;
const ports = 12_000;
const healthMsMax = 2_000;
const deathMsMax = 10_000;

export class DaemonLife implements Server {
  readonly #options: LifeOptions;
  readonly #folder = realpathSync(mkdtempSync(join(tmpdir(), "orchd-chaos-")));
  readonly #settings: Settings;
  readonly #lives: RunningDaemon[] = [];
  readonly #killed = new Set<RunningDaemon>();

  private constructor(options: LifeOptions) {
    this.#options = options;
    this.#settings = { ...options.settings, addr: `127.0.0.1:${freePort()}` };
  }

  static async begin(options: LifeOptions): Promise<DaemonLife> {
    const life = new DaemonLife(options);
    await life.#start();
    await life.now.ready();
    return life;
  }

  get now(): RunningDaemon {
    const daemon = this.#lives.at(-1);
    if (daemon === undefined) throw new Error("it was never started");
    return daemon;
  }

  get url(): string {
    return this.now.url;
  }

  get key(): string {
    return this.now.key;
  }

  /** Resolves when the next one listens; what the dead one left may still be ending. */
  async killAndStart(): Promise<void> {
    const daemon = this.now;
    this.#killed.add(daemon);
    daemon.signal("SIGKILL");
    await waitFor(() => daemon.hasExited, deathMsMax, "the killed daemon is gone");
    await this.#start();
  }

  /** Kills the engine that `choose` picks of those that the daemon names. False: it named none. */
  async killEngine(choose: (pids: readonly number[]) => number): Promise<boolean> {
    const daemon = this.now;
    const signal = AbortSignal.timeout(healthMsMax);
    const path = `/v1/pools/${this.#options.poolId}/health`;
    const response = await daemon.fetch(path, { signal }).catch(() => null);
    if (response === null || !response.ok) return false;
    const health = (await response.json().catch(() => null)) as PoolHealth | null;
    const pids = (health?.replicas ?? []).flatMap(({ pid }) => (pid === null ? [] : [pid]));
    if (pids.length === 0) return false;
    const pid = choose(pids);
    if (!daemon.engines().includes(pid)) return false;
    process.kill(pid, "SIGKILL");
    return true;
  }

  /** What all lives logged about the task, the latest last. */
  logOf(taskId: string): string[] {
    return this.#lives.flatMap(({ lines }, life) =>
      lines
        .filter(({ task_id }) => task_id === taskId)
        .map(({ time, event, replica_id, human }) => `life ${life}: ${time} ${event} ${replica_id} ${human}`),
    );
  }

  /** The log of all lives. */
  get log(): string {
    return this.#lives.map(({ stdout }) => stdout).join("");
  }

  /** SIGTERM. Resolves with the exit code once nothing of it is left; throws what is. */
  async stop(): Promise<number> {
    this.#killed.add(this.now);
    return await this.now.stop();
  }

  /** Nothing waits or runs (where that is asked), and SIGTERM leaves nothing behind. @returns what is wrong */
  async endInPeace(withoutTasks: boolean): Promise<string[]> {
    const wrong: string[] = [];
    try {
      for (const state of withoutTasks ? ["queued", "running", "suspended"] : []) {
        const path = `/v1/tasks?state=${state}`;
        const { tasks } = await this.now.json<{ tasks: readonly { task_id: string }[] }>(path);
        if (tasks.length > 0)
          wrong.push(`${tasks.length} ${state} after all streams have ended, such as ${tasks[0]?.task_id}`);
      }
      const code = await this.stop();
      if (code !== 143) wrong.push(`SIGTERM: exit ${code}`);
    } catch (error) {
      wrong.push(error instanceof Error ? error.message : String(error));
    }
    return wrong;
  }

  /** Whatever happened before: nothing is left, neither process nor file. */
  async dispose(): Promise<void> {
    for (const daemon of this.#lives) {
      this.#killed.add(daemon);
      await daemon.dispose();
    }
    rmSync(this.#folder, { recursive: true, force: true });
  }

  async #start(): Promise<void> {
    const { command, onDeath } = this.#options;
    const daemon = await startDaemon({
      settings: this.#settings,
      command,
      folder: this.#folder,
      until: "listening",
    });
    this.#lives.push(daemon);
    void daemon.exited.then((code) => {
      if (!this.#killed.has(daemon))
        onDeath(
          `the daemon ended by itself, exit ${code}: ${daemon.stderr.slice(-2000)}\n${daemon.stdout.slice(-2000)}`,
        );
    });
  }
}

function freePort(): number {
  for (let attempt = 0; attempt < 100; attempt++) {
    const port = portsFrom + Math.floor(Math.random() * ports);
    try {
      Bun.listen({ hostname: "127.0.0.1", port, socket: { data: () => undefined } }).stop(true);
      return port;
    } catch (error) {
      if ((error as { code?: string }).code !== "EADDRINUSE") throw error;
    }
  }
  throw new Error("no free port in a hundred attempts");
}
