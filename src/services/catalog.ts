/**
 * The model catalog: entries, their files, what runs for them. api/catalog.ts asks it; pool-models.ts holds pools to it.
 *
 * Always holds: all entries are in memory and on the disk, the disk first; a job that ends is written into every entry
 * of its file; files that the API names lie within models.dir and models.roots.
 */
import {
  asksTheSame,
  type CatalogEntry,
  type CatalogRequest,
  type CatalogState,
  judged,
  moved,
  newEntry,
  resultOf,
  stateOf,
  type Trust,
  type TrustPolicy,
  trustOf,
  type Verification,
  type VerificationReason,
} from "../domain/catalog.ts";
import { OrchestratorError } from "../domain/errors.ts";
import { type AllowedHost, judgeHop } from "../domain/fetch-policy.ts";
import { limits } from "../domain/limits.ts";
import {
  cachePathOf,
  idOf,
  isRemote,
  parseModelRef,
  type RemoteRef,
  refText,
  urlOf,
} from "../domain/model-ref.ts";
import type { CatalogStore } from "../ports/catalog-store.ts";
import type { Clock } from "../ports/clock.ts";
import type { Located, ModelFiles, ModelSource } from "../ports/model-source.ts";
import type { Log, Metrics } from "../ports/telemetry.ts";
import { type JobOutcome, type JobView, ModelJobs } from "./model-jobs.ts";
import { storing } from "./refusals.ts";

export interface CatalogRules {
  readonly trust: TrustPolicy;
  readonly fetch: { readonly enabled: boolean; readonly allowed: readonly AllowedHost[] };
}

export interface CatalogDeps {
  readonly store: CatalogStore;
  readonly source: ModelSource;
  readonly files: ModelFiles;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Pick<Metrics, "modelVerified">;
  readonly rules: CatalogRules;
  readonly onFatal: (error: unknown) => void;
}

/** An entry as it stands now. */
export interface CatalogView {
  readonly entry: CatalogEntry;
  readonly state: CatalogState;
  readonly located: Located;
  readonly job: JobView | null;
  readonly trust: Trust;
  /** Where it is fetched from; null: nowhere. */
  readonly url: string | null;
}

export interface CatalogListQuery {
  readonly tag: string | null;
  readonly state: CatalogState | null;
  /** Ids behind this one; null: from the first. */
  readonly after: string | null;
  readonly limit: number;
}

export class Catalog {
  readonly #entries = new Map<string, CatalogEntry>();
  /** Ids by the path of their file: asked for each task. */
  readonly #byPath = new Map<string, Set<string>>();
  readonly #jobs: ModelJobs;

  constructor(private readonly deps: CatalogDeps) {
    const { source, files, clock, log, onFatal } = deps;
    const onEnd = (path: string, kind: "fetch" | "verify", outcome: JobOutcome): void =>
      this.#ended(path, kind, outcome);
    this.#jobs = new ModelJobs({ source, files, clock, log, onEnd, onFatal });
  }

  /** Fetches that the last process had begun go on. @throws StoreError */
  start(): void {
    for (const entry of this.deps.store.all()) this.#remember(entry);
    if (!this.deps.rules.fetch.enabled) return;
    for (const entry of this.#entries.values()) if (entry.wanted) this.#startFetch(entry);
  }

  async stop(): Promise<void> {
    await this.#jobs.stop();
    this.deps.store.close();
  }

  // ---- what the API asks ----

  /**
   * The entry that is there where the same was asked for. `fetch`: and have its file, if it is not there.
   * @throws INVALID_PARAMS, CONFLICT, FORBIDDEN, STORAGE_UNAVAILABLE
   */
  add(request: CatalogRequest, fetch: boolean): { view: CatalogView; fresh: boolean } {
    const parsed = parseModelRef(request.modelRef);
    if (!parsed.ok) throw invalid("model_ref", parsed.problem);
    if (parsed.ref.kind === "catalog")
      throw invalid(
        "model_ref",
        `${parsed.ref.id} is the id of an entry; name a file, hf: or https: (file:${parsed.ref.id} for a file of that name)`,
      );
    const wanted = { ...request, modelRef: refText(parsed.ref) };
    if (this.#locate(wanted).kind === "outside")
      throw invalid("model_ref", "the file lies outside models.dir and models.roots: name one within them");
    if (fetch) this.#assertFetchable(wanted);
    const there = this.#entries.get(request.id);
    if (there !== undefined && !asksTheSame(there, wanted))
      throw new OrchestratorError(
        "CONFLICT",
        `the entry ${request.id} says something else: DELETE it first, or take another id`,
        { details: { field: "id" } },
      );
    if (there === undefined && this.#entries.size >= limits.catalogEntriesMax)
      throw invalid(
        "id",
        `the catalog holds ${limits.catalogEntriesMax} entries, which is all: DELETE one first`,
      );
    const entry = there ?? this.#put(newEntry(wanted, this.#nowMs()));
    if (fetch) this.fetch(entry.id);
    return { view: this.get(entry.id), fresh: there === undefined };
  }

  /** @throws NOT_FOUND */
  get(id: string): CatalogView {
    return this.#view(this.#entry(id));
  }

  /** By id. */
  list({ tag, state, after, limit }: CatalogListQuery): {
    views: readonly CatalogView[];
    next: string | null;
  } {
    const nowMs = this.#nowMs();
    const all = [...this.#entries.values()]
      .filter((entry) => after === null || entry.id > after)
      .filter((entry) => tag === null || entry.tags.includes(tag))
      .filter((entry) => state === null || stateOf(entry, nowMs) === state)
      .sort((a, b) => (a.id < b.id ? -1 : 1));
    const page = all.slice(0, limit);
    return {
      views: page.map((entry) => this.#view(entry)),
      next: all.length > page.length ? (page.at(-1)?.id ?? null) : null,
    };
  }

  /** Its file stays; what an unfinished fetch left goes. @throws NOT_FOUND, STORAGE_UNAVAILABLE */
  async remove(id: string): Promise<void> {
    const entry = this.#entry(id);
    const { path } = this.#located(entry);
    storing(() => this.deps.store.remove(id));
    this.#entries.delete(id);
    this.#byPath.get(path)?.delete(id);
    if (this.#entriesOf(path).length > 0) return;
    this.#jobs.cancel(path);
    await this.#jobs.ended(path);
    // Somebody may have entered it again meanwhile.
    if (this.#entriesOf(path).length === 0 && this.#remote(entry) !== null)
      await this.deps.source.discard(path);
  }

  /** Starts it, unless one runs. @throws NOT_FOUND */
  verify(id: string): CatalogView {
    const entry = this.#entry(id);
    this.#jobs.verify(this.#located(entry).path);
    return this.#view(entry);
  }

  /** Starts it or goes on with it; a file that is there is verified instead. @throws NOT_FOUND, FORBIDDEN, INVALID_PARAMS */
  fetch(id: string): CatalogView {
    const entry = this.#entry(id);
    this.#assertFetchable(entry);
    if (this.#located(entry).kind === "file") return this.verify(id);
    this.#startFetch(this.#put({ ...entry, wanted: true, fetchProblem: null }));
    return this.get(id);
  }

  /** Of whatever runs for its file; what came so far stays. @throws NOT_FOUND */
  cancel(id: string): CatalogView {
    const entry = this.#entry(id);
    const { path } = this.#located(entry);
    for (const one of this.#entriesOf(path)) if (one.wanted) this.#put({ ...one, wanted: false });
    this.#jobs.cancel(path);
    return this.get(id);
  }

  /** `inMs`: until it is Retired. @throws NOT_FOUND, STORAGE_UNAVAILABLE */
  move(id: string, state: CatalogState, inMs: number): CatalogView {
    this.#put(moved(this.#entry(id), state, inMs, this.#nowMs()));
    return this.get(id);
  }

  /** Resolves when nothing waits or runs for the entry's file. */
  async settled(id: string): Promise<void> {
    await this.#jobs.ended(this.#located(this.#entry(id)).path);
  }

  // ---- what the rest of the daemon asks ----

  /** For /metrics: each entry once. */
  models(): { readonly modelId: string; readonly state: CatalogState }[] {
    const nowMs = this.#nowMs();
    return [...this.#entries.values()].map((entry) => ({ modelId: entry.id, state: stateOf(entry, nowMs) }));
  }

  /** Those of one file. */
  at(path: string): readonly CatalogEntry[] {
    return this.#entriesOf(path);
  }

  isRetired(entry: CatalogEntry): boolean {
    return stateOf(entry, this.#nowMs()) === "Retired";
  }

  /** Makes one for a model that only the configuration names. @throws STORAGE_UNAVAILABLE */
  enter(ref: RemoteRef): CatalogEntry {
    const base = idOf(ref);
    let id = base;
    for (let n = 2; this.#entries.has(id); n++) id = `${base}-${n}`;
    const request = { id, modelRef: refText(ref), digest: null, sizeBytes: null, tags: [], references: [] };
    return this.#put(newEntry(request, this.#nowMs()));
  }

  /** Resolves when nothing waits or runs for the file; null: nothing does. */
  running(path: string): Promise<void> | null {
    return this.#jobs.of(path) === null ? null : this.#jobs.ended(path);
  }

  get isStopped(): boolean {
    return this.#jobs.stopped;
  }

  // ---- jobs ----

  #startFetch(entry: CatalogEntry): void {
    const ref = this.#remote(entry);
    if (ref === null) return;
    const { digest, sizeBytes } = entry;
    this.#jobs.fetch({ url: urlOf(ref), path: this.#located(entry).path, digest, sizeBytes });
  }

  #ended(path: string, kind: "fetch" | "verify", outcome: JobOutcome): void {
    try {
      for (const entry of this.#entriesOf(path)) this.#note(entry, kind, outcome);
    } catch (error) {
      if (!(error instanceof OrchestratorError)) throw error;
      // The file is what it is; that it was looked at is told again by the next verification.
      this.deps.log.error("catalog_not_written", { path, human: error.message }, error);
    }
  }

  #note(entry: CatalogEntry, kind: "fetch" | "verify", outcome: JobOutcome): void {
    const atMs = this.#nowMs();
    // Called off because the daemon ends: it goes on at the next start.
    const wanted = entry.wanted && outcome.kind === "canceled" && this.#jobs.stopped;
    if (outcome.kind === "canceled") {
      this.#count("canceled");
      if (entry.wanted !== wanted) this.#put({ ...entry, wanted });
      return;
    }
    if (outcome.kind === "failed") {
      this.#count(outcome.reason);
      const { reason, file, message } = outcome;
      const verification: Verification = { reason, digest: null, file, atMs };
      // A fetch that failed says nothing of a file: there is none.
      this.#put({
        ...entry,
        wanted,
        ...(kind === "fetch" ? { fetchProblem: message } : { verification }),
      });
      return;
    }
    const { file, digest, sourceDigest } =
      outcome.kind === "fetched"
        ? { file: outcome.file.file, digest: outcome.file.digest, sourceDigest: outcome.file.sourceDigest }
        : { file: outcome.file, digest: outcome.digest, sourceDigest: entry.sourceDigest };
    const rightSize = entry.sizeBytes === null || entry.sizeBytes === file.sizeBytes;
    const reason = rightSize ? judged({ digest: entry.digest, sourceDigest }, digest) : "size";
    this.#count(reason);
    const verification: Verification = { reason, digest, file, atMs };
    this.#put({ ...entry, wanted, sourceDigest, fetchProblem: null, verification });
  }

  #count(reason: VerificationReason): void {
    this.deps.metrics.modelVerified({ result: resultOf(reason), reason });
  }

  // ---- entries ----

  #entry(id: string): CatalogEntry {
    const entry = this.#entries.get(id);
    if (entry === undefined)
      throw new OrchestratorError(
        "NOT_FOUND",
        `the catalog has no entry ${id}: GET /v1/catalog/models lists them`,
      );
    return entry;
  }

  /** Whole: they are stored and shown. */
  #nowMs(): number {
    return Math.round(this.deps.clock.nowMs());
  }

  #put(entry: CatalogEntry): CatalogEntry {
    storing(() => this.deps.store.put(entry));
    this.#remember(entry);
    return entry;
  }

  #remember(entry: CatalogEntry): void {
    this.#entries.set(entry.id, entry);
    const place = this.#placeOf(entry);
    if (place === null) return;
    const path = this.deps.files.pathOf(place);
    this.#byPath.set(path, (this.#byPath.get(path) ?? new Set()).add(entry.id));
  }

  #view(entry: CatalogEntry): CatalogView {
    const located = this.#locate(entry);
    const ref = this.#remote(entry);
    const file = located.kind === "file" ? located.file : null;
    return {
      entry,
      state: stateOf(entry, this.#nowMs()),
      located,
      job: located.kind === "outside" ? null : this.#jobs.of(located.path),
      trust: trustOf(this.deps.rules.trust, entry, file),
      url: ref === null ? null : urlOf(ref),
    };
  }

  #locate(entry: Pick<CatalogEntry, "modelRef">): Located {
    const place = this.#placeOf(entry);
    return place === null ? { kind: "outside" } : this.deps.files.locate(place, true);
  }

  /** Its path as it is named, or in the cache. */
  #placeOf({ modelRef }: Pick<CatalogEntry, "modelRef">): string | null {
    const parsed = parseModelRef(modelRef);
    if (!parsed.ok || parsed.ref.kind === "catalog") return null;
    return isRemote(parsed.ref) ? cachePathOf(parsed.ref) : parsed.ref.path;
  }

  /** @throws INVALID_PARAMS where models.dir and models.roots are no longer what they were */
  #located(entry: CatalogEntry): Exclude<Located, { kind: "outside" }> {
    const located = this.#locate(entry);
    if (located.kind === "outside")
      throw invalid(
        "model_ref",
        `${entry.modelRef} lies outside models.dir and models.roots: DELETE the entry ${entry.id}`,
      );
    return located;
  }

  #entriesOf(path: string): CatalogEntry[] {
    return [...(this.#byPath.get(path) ?? [])].flatMap((id) => this.#entries.get(id) ?? []);
  }

  #remote({ modelRef }: Pick<CatalogEntry, "modelRef">): RemoteRef | null {
    const parsed = parseModelRef(modelRef);
    return parsed.ok && isRemote(parsed.ref) ? parsed.ref : null;
  }

  #assertFetchable(request: Pick<CatalogRequest, "modelRef">): void {
    const ref = this.#remote(request);
    if (ref === null)
      throw invalid("model_ref", `${request.modelRef} is a file of this machine: leave fetch out`);
    const { enabled, allowed } = this.deps.rules.fetch;
    if (!enabled)
      throw new OrchestratorError(
        "FORBIDDEN",
        "nothing is fetched here: models.fetch.enabled is false. Put the file into models.dir and name it by file:",
      );
    const verdict = judgeHop(urlOf(ref), allowed);
    if (!verdict.ok) throw new OrchestratorError("FORBIDDEN", `not fetched: ${verdict.why}`);
  }
}

const invalid = (field: string, message: string): OrchestratorError =>
  new OrchestratorError("INVALID_PARAMS", message, { details: { field } });
