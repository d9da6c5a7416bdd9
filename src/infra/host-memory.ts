/**
 * The memory of this machine, as the kernel tells it: /proc/meminfo, within the bounds of the control group that the
 * daemon runs in (cgroup v2). Made by app/bootstrap-residency.ts.
 *
 * Sources: https://docs.kernel.org/filesystems/proc.html (MemAvailable), https://docs.kernel.org/admin-guide/cgroup-v2.html
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { HostMemory } from "../ports/memory.ts";

export interface HostMemoryPaths {
  readonly meminfo: string;
  /** The hierarchy's root. */
  readonly cgroups: string;
  /** Which group this process is in. */
  readonly ownCgroup: string;
}

const systemPaths: HostMemoryPaths = {
  meminfo: "/proc/meminfo",
  cgroups: "/sys/fs/cgroup",
  ownCgroup: "/proc/self/cgroup",
};

export class ProcHostMemory implements HostMemory {
  constructor(private readonly paths: HostMemoryPaths = systemPaths) {}

  sample(): { readonly totalBytes: number; readonly availableBytes: number } | null {
    const text = this.#read(this.paths.meminfo);
    const totalBytes = fieldOf(text, "MemTotal");
    const availableBytes = fieldOf(text, "MemAvailable");
    if (totalBytes === null || availableBytes === null) return null;
    let bounded = { totalBytes, availableBytes };
    for (const group of this.#groups()) bounded = within(bounded, group);
    return bounded;
  }

  /** The group and those around it that have a bound. Page cache of theirs is given back when it is needed. */
  *#groups(): Generator<{ readonly maxBytes: number; readonly usedBytes: number }> {
    const own = /^0::(\/.*)$/m.exec(this.#read(this.paths.ownCgroup))?.[1] ?? "/";
    const parts = own.split("/").filter((part) => part !== "" && part !== "..");
    for (let depth = parts.length; depth >= 0; depth--) {
      const folder = join(this.paths.cgroups, ...parts.slice(0, depth));
      const maxBytes = Number(this.#read(join(folder, "memory.max")).trim() || Number.NaN);
      if (!Number.isSafeInteger(maxBytes)) continue;
      const current = Number(this.#read(join(folder, "memory.current")).trim());
      const cached = Number(/^inactive_file (\d+)$/m.exec(this.#read(join(folder, "memory.stat")))?.[1] ?? 0);
      yield { maxBytes, usedBytes: Math.max(0, current - cached) };
    }
  }

  /** Empty: it is not there. */
  #read(path: string): string {
    try {
      return readFileSync(path, "utf8");
    } catch (error) {
      if (error instanceof Error && "code" in error) return "";
      throw error;
    }
  }
}

function within(
  host: { readonly totalBytes: number; readonly availableBytes: number },
  { maxBytes, usedBytes }: { readonly maxBytes: number; readonly usedBytes: number },
) {
  return {
    totalBytes: Math.min(host.totalBytes, maxBytes),
    availableBytes: Math.min(host.availableBytes, Math.max(0, maxBytes - usedBytes)),
  };
}

function fieldOf(text: string, name: string): number | null {
  const [, kib] = new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(text) ?? [];
  return kib === undefined ? null : Number(kib) * 1024;
}
