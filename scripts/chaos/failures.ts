/** The rules that did not hold in a run, each with its evidence. Kept by the chaos run and by the run of reloads. */
import type { DaemonLife } from "./daemon-life.ts";
import type { ChaosStream } from "./stream.ts";

export interface Failure {
  readonly taskId: string | null;
  readonly what: string;
  readonly events: readonly string[];
  readonly log: readonly string[];
}

const failuresMax = 20;
const logLinesMax = 40;

export class Failures {
  readonly #found: Failure[] = [];

  constructor(
    private readonly life: DaemonLife,
    private readonly say: (line: string) => void,
  ) {}

  get list(): readonly Failure[] {
    return this.#found;
  }

  /** More would say nothing new. */
  get isFull(): boolean {
    return this.#found.length >= failuresMax;
  }

  add(stream: ChaosStream | null, what: string): void {
    if (this.isFull) return;
    const taskId = stream?.taskId ?? null;
    const log = taskId === null ? [] : this.life.logOf(taskId).slice(-logLinesMax);
    this.#found.push({ taskId, what, events: stream?.recent ?? [], log });
    this.say(`FAILED ${taskId ?? ""}: ${what}`);
  }
}
