/**
 * The catalog over a store and files of its own and a source that does what the test says: entries, jobs, trust,
 * retired models, pools whose model is fetched first.
 */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import type { CatalogRequest } from "../../src/domain/catalog.ts";
import { isOrchestratorError } from "../../src/domain/errors.ts";
import { parseAllowedHost } from "../../src/domain/fetch-policy.ts";
import { limits } from "../../src/domain/limits.ts";
import { factsOf, LocalModelFiles } from "../../src/infra/models/local-model-files.ts";
import { SqliteModelCatalog } from "../../src/infra/sqlite/model-catalog.ts";
import {
  FetchError,
  type FetchedFile,
  type FetchProgress,
  type FetchTarget,
  type ModelSource,
} from "../../src/ports/model-source.ts";
import { Catalog, type CatalogRules } from "../../src/services/catalog.ts";
import { PoolModels } from "../../src/services/pool-models.ts";
import { poolSpec } from "../support/replicas.ts";
import { sha256, tinyGguf } from "../support/tiny-gguf.ts";
import { VirtualClock } from "../support/virtual-clock.ts";
import { waitFor } from "../support/wait.ts";
import { RecordingLog, RecordingMetrics } from "./rig.ts";

/** A fetch runs until the test says how it ends. */
class ToldSource implements ModelSource {
  readonly running = new Map<
    string,
    {
      target: FetchTarget;
      tell: (news: Partial<FetchProgress>) => void;
      end: (as: Uint8Array | Error) => void;
    }
  >();
  readonly fetched: string[] = [];
  readonly discarded: string[] = [];

  fetch(
    target: FetchTarget,
    onProgress: (progress: FetchProgress) => void,
    signal: AbortSignal,
  ): Promise<FetchedFile> {
    const { promise, resolve, reject } = Promise.withResolvers<FetchedFile>();
    this.fetched.push(target.path);
    const start: FetchProgress = {
      phase: "asking",
      bytesDone: 0,
      bytesTotal: null,
      bytesReceived: 0,
      interruptions: 0,
      resumable: null,
    };
    const gone = (): void => void this.running.delete(target.path);
    signal.addEventListener("abort", () => {
      gone();
      reject(new FetchError("aborted", "called off"));
    });
    this.running.set(target.path, {
      target,
      tell: (news) => onProgress({ ...start, ...news }),
      end: (as) => {
        gone();
        if (as instanceof Error) return reject(as);
        mkdirSync(dirname(target.path), { recursive: true });
        writeFileSync(target.path, as);
        const file = factsOf(target.path);
        if (file === null) throw new Error("it was just written");
        resolve({ digest: sha256(as), sizeBytes: as.byteLength, sourceDigest: null, file });
      },
    });
    return promise;
  }

  async discard(path: string): Promise<void> {
    this.discarded.push(path);
  }

  one() {
    const [only] = this.running.values();
    if (only === undefined) throw new Error("nothing is fetched");
    return only;
  }
}

let folder: string;
let models: string;
let open: Catalog[];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "orchd-catalog-"));
  models = join(folder, "models");
  mkdirSync(models);
  open = [];
});
afterEach(async () => {
  for (const catalog of open) await catalog.stop();
  rmSync(folder, { recursive: true });
});

const hub = parseAllowedHost("huggingface.co");
const rules = (more: Partial<CatalogRules> = {}): CatalogRules => ({
  trust: "permissive",
  fetch: { enabled: true, allowed: hub === null ? [] : [hub] },
  ...more,
});

function rig(of: Partial<CatalogRules> = {}) {
  const source = new ToldSource();
  const clock = new VirtualClock();
  const metrics = new RecordingMetrics();
  const log = new RecordingLog();
  const headerProblem = (path: string): string | null => (path.includes("broken") ? "it is broken" : null);
  const files = new LocalModelFiles({ dir: models, roots: [] }, headerProblem);
  const catalog = new Catalog({
    store: new SqliteModelCatalog(join(folder, "models.sqlite")),
    source,
    files,
    clock,
    log,
    metrics,
    rules: rules(of),
    onFatal: (error) => {
      throw error;
    },
  });
  catalog.start();
  open.push(catalog);
  const close = async (): Promise<void> => {
    open = open.filter((one) => one !== catalog);
    await catalog.stop();
  };
  const pools = new PoolModels({ catalog, files, log, rules: rules(of) });
  return { catalog, pools, source, clock, metrics, log, close };
}

const request = (id: string, modelRef: string, more: Partial<CatalogRequest> = {}): CatalogRequest => ({
  id,
  modelRef,
  digest: null,
  sizeBytes: null,
  tags: [],
  references: [],
  ...more,
});
const codeOf = (work: () => unknown): string => {
  try {
    work();
  } catch (error) {
    if (isOrchestratorError(error)) return error.code;
    throw error;
  }
  return "nothing was thrown";
};
const hf = "hf:o/r/m.gguf";
const hfPath = (): string => join(models, "hf", "o", "r", "m.gguf");
const outcomes = (metrics: RecordingMetrics): unknown[] =>
  metrics.of("modelVerified").map(([labels]) => labels);

describe("entries (ORCHD-MODEL-1)", () => {
  test("are there once, listed by id in pages, and outlive the process", async () => {
    const first = rig();
    const made = first.catalog.add(request("b", "b.gguf", { tags: ["t"] }), false);
    expect([made.fresh, made.view.entry.modelRef]).toEqual([true, "file:b.gguf"]);
    expect(first.catalog.add(request("b", "file:b.gguf", { tags: ["t"] }), false).fresh).toBe(false);
    expect(codeOf(() => first.catalog.add(request("b", "c.gguf"), false))).toBe("CONFLICT");
    first.catalog.add(request("a", "a.gguf"), false);
    first.catalog.add(request("c", "c.gguf", { tags: ["t"] }), false);
    await first.close();
    const { catalog } = rig();
    const all = { tag: null, state: null, after: null, limit: 2 } as const;
    const page = catalog.list(all);
    expect([page.views.map(({ entry }) => entry.id), page.next]).toEqual([["a", "b"], "b"]);
    const rest = catalog.list({ ...all, after: "b" });
    expect([rest.views.map(({ entry }) => entry.id), rest.next]).toEqual([["c"], null]);
    expect(catalog.list({ ...all, tag: "t" }).views.map(({ entry }) => entry.id)).toEqual(["b", "c"]);
    await catalog.remove("b");
    expect(codeOf(() => catalog.get("b"))).toBe("NOT_FOUND");
  });

  test("name nothing outside of models.dir, by no path and no link", () => {
    const { catalog } = rig();
    writeFileSync(join(folder, "secret.gguf"), "GGUF");
    symlinkSync(join(folder, "secret.gguf"), join(models, "link.gguf"));
    for (const ref of ["../secret.gguf", "file:/etc/passwd", join(folder, "secret.gguf"), "link.gguf"])
      expect([ref, codeOf(() => catalog.add(request("x", ref), false))]).toEqual([ref, "INVALID_PARAMS"]);
    for (const ref of ["other-entry", "mock:words", "ftp://h/x.gguf", "hf:o/x.gguf"])
      expect([ref, codeOf(() => catalog.add(request("x", ref), false))]).toEqual([ref, "INVALID_PARAMS"]);
  });

  test("are not more than may be", () => {
    const { catalog } = rig();
    // Through the store it would take a sync for each.
    const put = SqliteModelCatalog.prototype.put;
    SqliteModelCatalog.prototype.put = () => undefined;
    try {
      for (let n = 0; n < limits.catalogEntriesMax; n++) catalog.add(request(`m${n}`, `${n}.gguf`), false);
      expect(codeOf(() => catalog.add(request("more", "more.gguf"), false))).toBe("INVALID_PARAMS");
    } finally {
      SqliteModelCatalog.prototype.put = put;
    }
  });
});

describe("a verification (ORCHD-MODEL-4)", () => {
  const file = tinyGguf(600_000);

  async function verified(id: string, more: Partial<CatalogRequest>, name = "m.gguf") {
    const { catalog, metrics } = rig();
    catalog.add(request(id, name, more), false);
    expect(catalog.verify(id).job).toMatchObject({ kind: "verify", state: "running" });
    await catalog.settled(id);
    return { view: catalog.get(id), counted: outcomes(metrics) };
  }

  test("tells what the file is", async () => {
    writeFileSync(join(models, "m.gguf"), file);
    const right = await verified("a", { digest: sha256(file), sizeBytes: file.byteLength });
    expect(right.view.entry.verification).toMatchObject({ reason: "given", digest: sha256(file) });
    expect(right.counted).toEqual([{ result: "done", reason: "given" }]);
    expect(right.view.job).toBeNull();
  });

  test("tells what is wrong with it", async () => {
    for (const name of ["a", "b", "broken", "c"]) writeFileSync(join(models, `${name}.gguf`), file);
    const cases: readonly [string, Partial<CatalogRequest>, string, boolean][] = [
      ["a.gguf", { digest: "b".repeat(64) }, "digest", false],
      ["b.gguf", { sizeBytes: 1 }, "size", false],
      ["broken.gguf", {}, "header", false],
      ["absent.gguf", {}, "missing", true],
      ["c.gguf", {}, "measured", true],
    ];
    for (const [at, [name, more, reason, trusted]] of cases.entries()) {
      const { view, counted } = await verified(`c${at}`, more, name);
      expect([name, view.entry.verification?.reason as string, view.trust.trusted]).toEqual([
        name,
        reason,
        trusted,
      ]);
      expect(counted).toEqual([{ result: reason === "measured" ? "done" : "failed", reason }]);
      for (const catalog of open.splice(0)) await catalog.stop();
    }
  });

  test("that is called off says nothing", async () => {
    writeFileSync(join(models, "m.gguf"), tinyGguf(30_000_000));
    const { catalog, metrics } = rig();
    catalog.add(request("a", "m.gguf"), false);
    catalog.verify("a");
    catalog.cancel("a");
    await catalog.settled("a");
    expect(catalog.get("a").entry.verification).toBeNull();
    expect(outcomes(metrics)).toEqual([{ result: "canceled", reason: "canceled" }]);
  });
});

describe("a fetch (ORCHD-MODEL-2)", () => {
  const file = tinyGguf(2000);

  test("runs beside, shows how far it is, and leaves a file that was compared", async () => {
    const { catalog, source, metrics } = rig();
    const { view } = catalog.add(request("m", hf, { digest: sha256(file) }), true);
    expect(view).toMatchObject({
      url: "https://huggingface.co/o/r/resolve/main/m.gguf",
      job: { kind: "fetch", state: "running" },
    });
    source.one().tell({ phase: "receiving", bytesDone: 5, bytesTotal: 2000 });
    expect(catalog.get("m").job?.progress).toMatchObject({ bytesDone: 5, bytesTotal: 2000 });
    source.one().end(file);
    await catalog.settled("m");
    expect(catalog.get("m")).toMatchObject({
      located: { kind: "file", path: hfPath() },
      job: null,
      trust: { trusted: true },
      entry: { wanted: false, verification: { reason: "given", digest: sha256(file) } },
    });
    expect(outcomes(metrics)).toEqual([{ result: "done", reason: "given" }]);
  });

  test("is one for all entries of a file; each compares it with its own digest", async () => {
    const { catalog, pools, source } = rig();
    catalog.add(request("right", hf), true);
    catalog.add(request("wrong", hf, { digest: "c".repeat(64) }), true);
    expect(source.fetched).toEqual([hfPath()]);
    source.one().end(file);
    await catalog.settled("right");
    expect(catalog.get("right").entry.verification?.reason).toBe("measured");
    expect(catalog.get("wrong").entry.verification?.reason).toBe("digest");
    const pool = poolSpec({ engine: "llamacpp", modelRef: hf, modelPath: hfPath() });
    expect(codeOf(() => pools.gate(pool))).toBe("POOL_UNAVAILABLE");
  });

  test("that fails says why, and may be asked for again", async () => {
    const { catalog, source } = rig();
    catalog.add(request("m", hf), true);
    source.one().end(new FetchError("refused", "there is no such file"));
    await catalog.settled("m");
    expect(catalog.get("m").entry).toMatchObject({ fetchProblem: "there is no such file", wanted: false });
    catalog.fetch("m");
    source.one().end(file);
    await catalog.settled("m");
    expect(catalog.get("m").entry).toMatchObject({ fetchProblem: null, wanted: false });
    expect(catalog.fetch("m").job?.kind).toBe("verify");
  });

  test("that runs when the daemon ends goes on at the next start; one that was called off does not", async () => {
    const first = rig();
    first.catalog.add(request("a", hf), true);
    first.catalog.add(request("b", "hf:o/r/b.gguf"), true);
    first.catalog.cancel("b");
    await first.catalog.settled("b");
    await first.close();
    const second = rig();
    expect(second.source.fetched).toEqual([hfPath()]);
    second.source.one().end(file);
    await second.catalog.settled("a");
    expect(second.catalog.get("a").entry.wanted).toBe(false);
  });

  test("waits while others run, and leaves the line when it is called off", async () => {
    const { catalog, source } = rig();
    for (const id of ["a", "b", "c", "d"]) catalog.add(request(id, `hf:o/r/${id}.gguf`), true);
    expect(source.fetched).toHaveLength(limits.fetchesAtOnce);
    expect(catalog.get("c").job).toMatchObject({ state: "waiting", startedMs: null });
    catalog.cancel("c");
    expect(catalog.get("c").job).toBeNull();
    source.one().end(file);
    await waitFor(() => source.fetched.length === 3);
    expect(source.fetched.at(-1)).toEndWith("d.gguf");
  });

  test("of an entry that is forgotten ends, and nothing of it is left", async () => {
    const { catalog, source } = rig();
    catalog.add(request("m", hf), true);
    await catalog.remove("m");
    expect([source.running.size, source.discarded]).toEqual([0, [hfPath()]]);
  });

  test("is refused by the switch, by the list, and for what lies here (ORCHD-MODEL-3)", () => {
    const off = rig({ fetch: { enabled: false, allowed: [] } });
    expect(codeOf(() => off.catalog.add(request("m", hf), true))).toBe("FORBIDDEN");
    expect(codeOf(() => off.catalog.get("m"))).toBe("NOT_FOUND");
    expect(off.catalog.add(request("m", hf), false).fresh).toBe(true);
    for (const ref of [
      "https://elsewhere.example/m.gguf",
      "http://127.0.0.1/m.gguf",
      "http://huggingface.co/m.gguf",
    ])
      expect([
        ref,
        codeOf(() => off.catalog.fetch(off.catalog.add(request(`x${ref.length}`, ref), false).view.entry.id)),
      ]).toEqual([ref, "FORBIDDEN"]);
    expect(off.source.fetched).toEqual([]);
  });

  test("of what the list does not name is refused", () => {
    const { catalog, source } = rig();
    expect(codeOf(() => catalog.add(request("m", "https://elsewhere.example/m.gguf"), true))).toBe(
      "FORBIDDEN",
    );
    expect(codeOf(() => catalog.add(request("m", "m.gguf"), true))).toBe("INVALID_PARAMS");
    expect(source.fetched).toEqual([]);
  });
});

describe("pools", () => {
  const file = tinyGguf(2000);
  const pool = (modelRef: string, modelPath: string) => poolSpec({ engine: "llamacpp", modelRef, modelPath });

  test("wait for a model that lies elsewhere, then load it", async () => {
    const { catalog, pools, source } = rig();
    const mine = pool(hf, hfPath());
    const prepared = pools.prepare(mine);
    expect(prepared).not.toBeNull();
    expect(catalog.get("m").job?.kind).toBe("fetch");
    expect(pools.prepare(mine)).not.toBeNull();
    expect(source.fetched).toHaveLength(1);
    source.one().end(file);
    await prepared;
    expect(pools.prepare(mine)).toBeNull();
    expect(existsSync(hfPath())).toBe(true);
    expect(pools.prepare(pool("file:m.gguf", join(models, "m.gguf")))).toBeNull();
    expect(codeOf(() => pools.gate(mine))).toBe("nothing was thrown");
  });

  test("load under strict trust what was verified against a digest that was given, and nothing else", async () => {
    const path = join(models, "m.gguf");
    writeFileSync(path, file);
    const { catalog, pools } = rig({ trust: "strict" });
    const mine = pool("file:m.gguf", path);
    expect(codeOf(() => pools.gate(mine))).toBe("POOL_UNAVAILABLE");
    catalog.add(request("m", "m.gguf", { digest: sha256(file) }), false);
    expect(codeOf(() => pools.gate(mine))).toBe("POOL_UNAVAILABLE");
    catalog.verify("m");
    await catalog.settled("m");
    expect(codeOf(() => pools.gate(mine))).toBe("nothing was thrown");
    writeFileSync(path, tinyGguf(2001));
    expect(codeOf(() => pools.gate(mine))).toBe("POOL_UNAVAILABLE");
    // Put right again it is compared before it is loaded.
    writeFileSync(path, file);
    expect(codeOf(() => pools.gate(mine))).toBe("POOL_UNAVAILABLE");
    await pools.prepare(mine);
    expect(codeOf(() => pools.gate(mine))).toBe("nothing was thrown");
    expect(pools.prepare(mine)).toBeNull();
  });

  test("take nothing for a model that is retired, from its instant on (ORCHD-MODEL-5)", async () => {
    const { catalog, pools, clock } = rig();
    const mine = pool("file:m.gguf", join(models, "m.gguf"));
    catalog.add(request("m", "m.gguf"), false);
    expect(pools.refusal(mine)).toBeNull();
    catalog.move("m", "Retired", 1000);
    expect(pools.refusal(mine)).toBeNull();
    await clock.advance(1000);
    expect(pools.refusal(mine)).toMatchObject({ code: "MODEL_DEPRECATED", status: 410 });
    expect(catalog.models()).toEqual([{ modelId: "m", state: "Retired" }]);
    expect(catalog.list({ tag: null, state: "Retired", after: null, limit: 9 }).views).toHaveLength(1);
    // Another name for the same file is still good.
    catalog.add(request("n", "m.gguf"), false);
    expect(pools.refusal(mine)).toBeNull();
    expect(pools.namesOf(mine)).toEqual(["m", "n"]);
    catalog.move("n", "Retired", 0);
    expect(pools.refusal(mine)).not.toBeNull();
    catalog.move("m", "Active", 0);
    expect(pools.refusal(mine)).toBeNull();
  });
});
