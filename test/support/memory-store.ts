/**
 * The task store's port in memory: the fake behind services under test, and the model that the real one is compared
 * with. It passes test/conformance/task-store.ts.
 *
 * A restart is `reopen("kill")`: everything written is there. A power cut is `reopen("power")`: only what was
 * synced is. Failures and slow disks are asked for: `failNextWrite`, `failSyncs`, `holdSyncs`.
 */
import { assert, assertNever } from "../../src/domain/assert.ts";
import {
  type NewTranscript,
  type Recovered,
  type StoredAllowance,
  type StoredSession,
  type StoredTask,
  type StoredTaskQuery,
  type StoredTranscript,
  StoreError,
  type StoreErrorKind,
  type StoreOp,
  type TaskStore,
} from "../../src/ports/task-store.ts";
import { afterEnd } from "./stored-tasks.ts";

interface Content {
  /** In the order of admission. */
  tasks: Map<string, StoredTask>;
  sessions: Map<string, StoredSession>;
  allowances: Map<string, StoredAllowance>;
  /** By ordinal; in the order in which they came. */
  transcripts: Map<number, NewTranscript>;
  ordinals: Set<number>;
  highest: number;
  transcriptsEver: number;
}

const empty = (): Content => ({
  tasks: new Map(),
  sessions: new Map(),
  allowances: new Map(),
  transcripts: new Map(),
  ordinals: new Set(),
  highest: 0,
  transcriptsEver: 0,
});
const copyOf = (content: Content): Content => ({
  ...content,
  tasks: new Map(content.tasks),
  sessions: new Map(content.sessions),
  allowances: new Map(content.allowances),
  transcripts: new Map(content.transcripts),
  ordinals: new Set(content.ordinals),
});

type Change =
  | readonly StoreOp[]
  | { readonly prunedIds: readonly string[] }
  | { readonly removedTranscripts: readonly number[] };

export class MemoryTaskStore implements TaskStore {
  /** Batches written, for tests that count transactions. */
  writes = 0;
  syncs = 0;
  #stable: Content;
  #recovered = false;
  #closed = false;
  #failNext: StoreErrorKind | null = null;
  #syncFailure: StoreError | null = null;
  #held: (() => void)[] | null = null;
  /** Since the last sync, in order. */
  #unsynced: Change[] = [];

  constructor(private readonly content: Content = empty()) {
    this.#stable = copyOf(content);
  }

  recover(): Recovered {
    assert(!this.#closed && !this.#recovered, "recovery happens once, before the first write");
    this.#recovered = true;
    const { tasks, sessions, allowances, highest } = this.content;
    return structuredClone({
      ordinal: highest,
      live: [...tasks.values()].filter(({ ended }) => ended === null).sort((a, b) => a.ordinal - b.ordinal),
      sessions: [...sessions.values()],
      allowances: [...allowances.values()],
    });
  }

  write(batch: readonly StoreOp[]): void {
    assert(!this.#closed, "the store is open");
    this.#recovered = true;
    if (batch.length === 0) return;
    if (this.#syncFailure !== null) throw this.#syncFailure;
    const kind = this.#failNext;
    this.#failNext = null;
    if (kind !== null) throw new StoreError(kind, `asked for: ${kind}`);
    const ops = structuredClone(batch);
    check(this.content, ops);
    for (const op of ops) apply(this.content, op);
    this.writes++;
    this.#unsynced.push(ops);
  }

  async synced(): Promise<void> {
    assert(!this.#closed, "the store is open");
    if (this.#held !== null) await new Promise<void>((resolve) => this.#held?.push(resolve));
    if (this.#syncFailure !== null) throw this.#syncFailure;
    this.syncs++;
    this.#settle();
  }

  #settle(): void {
    for (const step of this.#unsynced)
      if ("prunedIds" in step) for (const taskId of step.prunedIds) this.#stable.tasks.delete(taskId);
      else if ("removedTranscripts" in step)
        for (const ordinal of step.removedTranscripts) this.#stable.transcripts.delete(ordinal);
      else for (const op of step) apply(this.#stable, op);
    this.#unsynced = [];
  }

  find(taskId: string): StoredTask | null {
    assert(!this.#closed, "the store is open");
    const task = this.content.tasks.get(taskId);
    return task === undefined ? null : structuredClone(task);
  }

  list({ keyId, state, sessionId, before, limit }: StoredTaskQuery): readonly StoredTask[] {
    assert(!this.#closed && limit > 0, "the store is open, and a page has room");
    return [...this.content.tasks.values()]
      .filter(
        ({ ordinal, spec, ended }) =>
          ended !== null &&
          (keyId === null || spec.keyId === keyId) &&
          (state === null || ended.state === state) &&
          (sessionId === null || spec.sessionId === sessionId) &&
          (before === null || ordinal < before),
      )
      .sort((a, b) => b.ordinal - a.ordinal)
      .slice(0, limit)
      .map((task) => structuredClone(task));
  }

  prune(finishedBeforeMs: number, max: number): number {
    assert(!this.#closed && max > 0, "the store is open, and a call may do something");
    const old = [...this.content.tasks.values()]
      .filter(({ ended }) => ended !== null && ended.finishedMs < finishedBeforeMs)
      .sort((a, b) => (a.ended?.finishedMs ?? 0) - (b.ended?.finishedMs ?? 0))
      .slice(0, max)
      .map(({ spec }) => spec.taskId);
    for (const taskId of old) this.content.tasks.delete(taskId);
    this.#unsynced.push({ prunedIds: old });
    return old.length;
  }

  transcripts(limit: number): readonly StoredTranscript[] {
    assert(!this.#closed && limit > 0, "the store is open, and a page has room");
    return [...this.content.transcripts].slice(0, limit).map(([ordinal, kept]) => ({ ordinal, ...kept }));
  }

  findTranscript(artifactId: string, keyId: string | null): StoredTranscript | null {
    assert(!this.#closed, "the store is open");
    for (const [ordinal, kept] of this.content.transcripts)
      if (kept.artifactId === artifactId && (keyId === null || kept.keyId === keyId))
        return { ordinal, ...kept };
    return null;
  }

  removeTranscripts(ordinals: readonly number[]): void {
    assert(!this.#closed, "the store is open");
    if (this.#syncFailure !== null) throw this.#syncFailure;
    for (const ordinal of ordinals) this.content.transcripts.delete(ordinal);
    this.#unsynced.push({ removedTranscripts: [...ordinals] });
  }

  transcriptTotals(): { readonly count: number; readonly chars: number } {
    assert(!this.#closed, "the store is open");
    const all = [...this.content.transcripts.values()];
    return { count: all.length, chars: all.reduce((sum, { text }) => sum + text.length, 0) };
  }

  sizeBytes(): number {
    assert(!this.#closed, "the store is open");
    return Buffer.byteLength(JSON.stringify([...this.content.tasks.values()])) + 1;
  }

  async close(): Promise<void> {
    this.#settle();
    this.#closed = true;
  }

  /** The next process: what it finds after this one was killed, or after the power went. */
  reopen(after: "kill" | "power"): MemoryTaskStore {
    return new MemoryTaskStore(copyOf(after === "kill" ? this.content : this.#stable));
  }

  failNextWrite(kind: StoreErrorKind): void {
    this.#failNext = kind;
  }

  /** From now on, as a disk does that has refused once. */
  failSyncs(kind: StoreErrorKind): void {
    this.#syncFailure = new StoreError(kind, `asked for: ${kind}`);
  }

  /** Syncs wait until the answer is called. */
  holdSyncs(): () => void {
    this.#held ??= [];
    return () => {
      const held = this.#held ?? [];
      this.#held = null;
      for (const resolve of held) resolve();
    };
  }
}

/** Before anything changes: a batch is all or nothing. */
function check(content: Content, batch: readonly StoreOp[]): void {
  const live = new Map<string, boolean>();
  const ordinals = new Set<number>();
  const isLive = (taskId: string): boolean => live.get(taskId) ?? content.tasks.get(taskId)?.ended === null;
  for (const op of batch)
    if (op.kind === "task_admitted") {
      const { taskId } = op.task.spec;
      assert(!live.has(taskId) && !content.tasks.has(taskId), `task ${taskId} is stored once`);
      assert(
        !content.ordinals.has(op.task.ordinal) && !ordinals.has(op.task.ordinal),
        "an ordinal is given once",
      );
      ordinals.add(op.task.ordinal);
      live.set(taskId, op.task.ended === null);
    } else if (op.kind === "task_ended") {
      assert(isLive(op.taskId), `task ${op.taskId} was live`);
      live.set(op.taskId, false);
    }
}

function apply(content: Content, op: StoreOp): void {
  const { tasks, sessions, allowances } = content;
  switch (op.kind) {
    case "task_admitted": {
      const { task } = op;
      tasks.set(task.spec.taskId, task.ended === null ? task : afterEnd(task, task.ended));
      content.ordinals.add(task.ordinal);
      content.highest = Math.max(content.highest, task.ordinal);
      break;
    }
    case "task_ended": {
      const task = tasks.get(op.taskId);
      assert(task !== undefined, `task ${op.taskId} is stored`);
      tasks.set(op.taskId, afterEnd(task, op.end));
      if (op.transcript !== undefined) content.transcripts.set(++content.transcriptsEver, op.transcript);
      break;
    }
    case "task_watched": {
      const task = tasks.get(op.taskId);
      if (task?.ended === null) tasks.set(op.taskId, { ...task, watched: true });
      break;
    }
    case "session_saved":
      sessions.set(op.session.sessionId, op.session);
      break;
    case "session_removed":
      sessions.delete(op.sessionId);
      break;
    case "allowance_saved":
      allowances.set(op.allowance.keyId, op.allowance);
      break;
    default:
      assertNever(op, "operation of the store");
  }
}
