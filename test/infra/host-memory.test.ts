/** The host's memory by the kernel's files, and a text that is replaced as a whole (ORCHD-MEM-3). */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ProcHostMemory } from "../../src/infra/host-memory.ts";
import { KeptFile } from "../../src/infra/kept-file.ts";

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "orchd-memory-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const MiB = 2 ** 20;

function machine(name: string, files: Readonly<Record<string, string>>): ProcHostMemory {
  for (const [path, text] of Object.entries(files)) {
    const file = join(folder, name, path);
    mkdirSync(join(file, ".."), { recursive: true });
    writeFileSync(file, text);
  }
  const at = (path: string): string => join(folder, name, path);
  return new ProcHostMemory({ meminfo: at("meminfo"), cgroups: at("cgroup"), ownCgroup: at("self") });
}
const meminfo = "MemTotal:       1048576 kB\nMemFree:  1 kB\nMemAvailable:    524288 kB\n";

describe("the host's memory", () => {
  test("is what the kernel tells", () => {
    expect(machine("plain", { meminfo }).sample()).toEqual({
      ...{ totalBytes: 1024 * MiB, availableBytes: 512 * MiB },
    });
  });

  test("is bounded by the control group and by those around it; cache that can go counts as available", () => {
    const files = {
      ...{ meminfo, self: "0::/outer/inner\n" },
      "cgroup/outer/inner/memory.max": "max\n",
      "cgroup/outer/memory.max": `${300 * MiB}\n`,
      "cgroup/outer/memory.current": `${200 * MiB}\n`,
      "cgroup/outer/memory.stat": `anon 1\ninactive_file ${50 * MiB}\n`,
    };
    expect(machine("bounded", files).sample()).toEqual({
      ...{ totalBytes: 300 * MiB, availableBytes: 150 * MiB },
    });
  });

  test("is not told by other systems", () => {
    expect(machine("none", {}).sample()).toBeNull();
    expect(machine("odd", { meminfo: "MemTotal: lots\n" }).sample()).toBeNull();
  });

  test("of this machine", () => {
    const sample = new ProcHostMemory().sample();
    expect(sample?.totalBytes).toBeGreaterThan(2 ** 28);
    expect(sample?.availableBytes).toBeLessThanOrEqual(sample?.totalBytes ?? 0);
  });
});

describe("a kept text", () => {
  test("is replaced as a whole, and nothing is left beside it", () => {
    const path = join(folder, "kept.json");
    const said: string[] = [];
    const kept = new KeptFile(path, (message) => said.push(message));
    expect(kept.read()).toBeNull();
    expect(kept.write("one, and long")).toBe(true);
    expect(kept.write("two")).toBe(true);
    expect([kept.read(), readFileSync(path, "utf8")]).toEqual(["two", "two"]);
    expect(existsSync(`${path}.new`)).toBe(false);
    expect(said).toEqual([]);
  });

  test("that cannot be written or read is told", () => {
    const said: string[] = [];
    const nowhere = new KeptFile(join(folder, "not-there", "kept.json"), (message) => said.push(message));
    expect(nowhere.write("x")).toBe(false);
    expect(said[0]).toContain("cannot be written");
    const place = join(folder, "a-folder");
    mkdirSync(place);
    chmodSync(place, 0o700);
    expect(new KeptFile(place, (message) => said.push(message)).read()).toBeNull();
    expect(said[1]).toContain("cannot be read");
  });
});
