/**
 * The engine of the run of reloads: a program that becomes llama-server, unless a file says what its next start does
 * instead. Called by run.ts.
 *
 * Always holds: an order counts for one start, and every other start is that of the real engine.
 */
import { chmodSync, existsSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { engineBin } from "../../test/support/engine.ts";

/**
 * exits: it ends with an error before it has read anything · killed: it is killed while it loads · memory: the real engine,
 * which may not have the memory that it needs · stopped: it lives and answers nothing, not even its health · wedged: its
 * health is green, and its first decode never answers.
 */
export const engineFaults = ["exits", "killed", "memory", "stopped", "wedged"] as const;
export type EngineFault = (typeof engineFaults)[number];

/** Address space in KiB: enough for the program, too little for its threads and buffers. */
const memoryKib = 200_000;

export class FaultyEngine {
  readonly path: string;
  readonly #order: string;

  constructor(folder: string) {
    this.path = join(folder, "llama-server");
    this.#order = join(folder, "order");
    const quote = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;
    const lying = resolve(import.meta.dir, "../../test/support/lying-llama-server.ts");
    writeFileSync(
      this.path,
      `#!/bin/sh
# The first that comes takes the order.
if mv ${quote(this.#order)} ${quote(`${this.#order}.`)}$$ 2>/dev/null; then
  read -r how < ${quote(`${this.#order}.`)}$$
  rm -f ${quote(`${this.#order}.`)}$$
  case "$how" in
    exits) echo "it does not want to" >&2; exit 7 ;;
    killed) kill -KILL $$ ;;
    memory) ulimit -v ${memoryKib} ;;
    stopped) kill -STOP $$ ;;
    wedged) LYING_LLAMA=wedge exec ${quote(process.execPath)} ${quote(lying)} "$@" ;;
  esac
fi
exec ${quote(engineBin())} "$@"
`,
    );
    chmodSync(this.path, 0o755);
  }

  /** What the next start does. */
  order(fault: EngineFault): void {
    writeFileSync(this.#order, `${fault}\n`);
  }

  /** Whether a start has taken the last order. */
  get isTaken(): boolean {
    return !existsSync(this.#order);
  }
}
