/**
 * Fetches and verifications of model files that run beside the work: a few at once, the rest in line, one for a file at a
 * time. services/catalog.ts starts them and hears of their end.
 *
 * Always holds: a job ends once, with an outcome, also when it is called off; after `stop` nothing runs and none is
 * started. A failure of the machine or the source is an outcome, anything else is a bug and reaches `onFatal`.
 */
import { assert } from "../domain/assert.ts";
import type { FileFacts, VerificationReason } from "../domain/catalog.ts";
import { limits } from "../domain/limits.ts";
import type { Clock } from "../ports/clock.ts";
import {
  type FetchedFile,
  type FetchProgress,
  type FetchTarget,
  isFetchError,
  type ModelFiles,
  type ModelSource,
} from "../ports/model-source.ts";
import type { Log } from "../ports/telemetry.ts";

export type JobOutcome =
  | { readonly kind: "fetched"; readonly file: FetchedFile }
  /** Read to its end; what that is worth, each entry tells by itself. */
  | { readonly kind: "read"; readonly digest: string; readonly file: FileFacts }
  | {
      readonly kind: "failed";
      readonly reason: Exclude<VerificationReason, "given" | "source" | "measured" | "canceled">;
      readonly message: string;
      readonly file: FileFacts | null;
    }
  | { readonly kind: "canceled" };

export interface JobView {
  readonly kind: "fetch" | "verify";
  readonly state: "waiting" | "running";
  readonly progress: FetchProgress;
  /** Null: it waits. */
  readonly startedMs: number | null;
}

interface Job {
  readonly path: string;
  readonly kind: "fetch" | "verify";
  readonly work: (job: Job) => Promise<JobOutcome>;
  readonly abort: AbortController;
  readonly ended: Promise<void>;
  readonly end: () => void;
  progress: FetchProgress;
  startedMs: number | null;
  loggedMs: number;
}

export interface ModelJobsDeps {
  readonly source: ModelSource;
  readonly files: ModelFiles;
  readonly clock: Clock;
  readonly log: Log;
  /** Before anybody who waits for it. */
  readonly onEnd: (path: string, kind: "fetch" | "verify", outcome: JobOutcome) => void;
  readonly onFatal: (error: unknown) => void;
}

const nothingYet: FetchProgress = {
  phase: "asking",
  bytesDone: 0,
  bytesTotal: null,
  bytesReceived: 0,
  interruptions: 0,
  resumable: null,
};

const atOnce = { fetch: limits.fetchesAtOnce, verify: 1 } as const;

export class ModelJobs {
  /** By path, in the order in which they came. */
  readonly #jobs = new Map<string, Job>();
  #stopped = false;

  constructor(private readonly deps: ModelJobsDeps) {}

  /** The one that runs for this file goes on; its digest and size are those of who came first. */
  fetch(target: FetchTarget): void {
    this.#add(target.path, "fetch", async (job) => {
      const file = await this.deps.source.fetch(
        target,
        (news) => this.#progressed(job, news),
        job.abort.signal,
      );
      return { kind: "fetched", file };
    });
  }

  verify(path: string): void {
    this.#add(path, "verify", (job) => this.#read(job));
  }

  /** Null: nothing waits or runs for this file. */
  of(path: string): JobView | null {
    const job = this.#jobs.get(path);
    if (job === undefined) return null;
    const { kind, progress, startedMs } = job;
    return { kind, state: startedMs === null ? "waiting" : "running", progress, startedMs };
  }

  /** Resolves when no job is left for the file. */
  async ended(path: string): Promise<void> {
    for (let job = this.#jobs.get(path); job !== undefined; job = this.#jobs.get(path)) await job.ended;
  }

  /** @returns whether there was one. */
  cancel(path: string): boolean {
    const job = this.#jobs.get(path);
    if (job === undefined) return false;
    job.abort.abort();
    // One that waits has nobody to notice.
    if (job.startedMs === null) this.#finish(job, { kind: "canceled" });
    return true;
  }

  /** What came so far stays for the next start. */
  async stop(): Promise<void> {
    this.#stopped = true;
    const all = [...this.#jobs.values()];
    for (const { path } of all) this.cancel(path);
    await Promise.all(all.map(({ ended }) => ended));
  }

  get stopped(): boolean {
    return this.#stopped;
  }

  #add(path: string, kind: Job["kind"], work: Job["work"]): void {
    if (this.#stopped || this.#jobs.has(path)) return;
    const { promise: ended, resolve: end } = Promise.withResolvers<void>();
    this.#jobs.set(path, {
      path,
      kind,
      work,
      abort: new AbortController(),
      ended,
      end,
      progress: nothingYet,
      startedMs: null,
      loggedMs: this.deps.clock.nowMs(),
    });
    this.#startNext();
  }

  #startNext(): void {
    for (const kind of ["fetch", "verify"] as const) {
      const ours = [...this.#jobs.values()].filter((job) => job.kind === kind);
      const running = ours.filter(({ startedMs }) => startedMs !== null).length;
      for (const job of ours.filter(({ startedMs }) => startedMs === null).slice(0, atOnce[kind] - running))
        this.#start(job);
    }
  }

  #start(job: Job): void {
    assert(job.startedMs === null, "a job starts once");
    job.startedMs = this.deps.clock.nowMs();
    this.#say(job, "started");
    job.work(job).then(
      (outcome) => this.#finish(job, outcome),
      (error: unknown) => this.#failed(job, error),
    );
  }

  #failed(job: Job, error: unknown): void {
    if (!isFetchError(error)) {
      this.deps.onFatal(error);
      return;
    }
    const { fetchErrorKind: kind, message } = error;
    if (kind === "aborted") {
      this.#finish(job, { kind: "canceled" });
      return;
    }
    const reasons = { digest: "digest", header: "header", wrong: "size" } as const;
    const reason = kind in reasons ? reasons[kind as keyof typeof reasons] : "unreadable";
    this.#finish(job, { kind: "failed", reason, message, file: null });
  }

  #finish(job: Job, outcome: JobOutcome): void {
    // Called off while it waited, it does not end a second time.
    if (this.#jobs.get(job.path) !== job) return;
    this.#jobs.delete(job.path);
    this.#say(job, outcome.kind, outcome.kind === "failed" ? outcome.message : null);
    this.deps.onEnd(job.path, job.kind, outcome);
    job.end();
    if (!this.#stopped) this.#startNext();
  }

  async #read(job: Job): Promise<JobOutcome> {
    const { files } = this.deps;
    const failed = (reason: "missing" | "header" | "unreadable", message: string, file: FileFacts | null) =>
      ({ kind: "failed", reason, message, file }) as const;
    const before = files.locate(job.path, false);
    if (before.kind !== "file") return failed("missing", "there is no such file", null);
    const problem = files.headerProblem(job.path);
    if (problem !== null) return failed("header", problem, before.file);
    const bytesTotal = before.file.sizeBytes;
    const digest = await files.digest(
      job.path,
      (bytesDone) => this.#progressed(job, { ...job.progress, phase: "checking", bytesDone, bytesTotal }),
      job.abort.signal,
    );
    const after = files.locate(job.path, false);
    if (after.kind !== "file" || after.file.modifiedMs !== before.file.modifiedMs)
      return failed("unreadable", "the file changed while it was read", null);
    return { kind: "read", digest, file: after.file };
  }

  #progressed(job: Job, progress: FetchProgress): void {
    job.progress = progress;
    const nowMs = this.deps.clock.nowMs();
    if (nowMs - job.loggedMs < limits.fetchLogEveryMs) return;
    job.loggedMs = nowMs;
    this.#say(job, "goes on");
  }

  #say(job: Job, what: string, problem: string | null = null): void {
    const { bytesDone, bytesTotal, bytesReceived, interruptions } = job.progress;
    const fields = {
      path: job.path,
      job: job.kind,
      bytes_done: bytesDone,
      bytes_total: bytesTotal,
      bytes_received: bytesReceived,
      interruptions,
      elapsed_ms: job.startedMs === null ? null : Math.round(this.deps.clock.nowMs() - job.startedMs),
      problem,
      human: `${job.kind} of ${job.path} ${what}${problem === null ? "." : `: ${problem}`}`,
    };
    if (problem === null) this.deps.log.info("model_job", fields);
    else this.deps.log.warn("model_job", fields);
  }
}
