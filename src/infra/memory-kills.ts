/**
 * Whether the kernel has ended a process because memory ran out, by its own counts: that of the daemon's control group
 * (children are in it), else that of the machine, which other services share. Called by infra/bun-process.ts at the start
 * and the end of each child; holds no file open.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { isSystemError } from "./process-table.ts";

export class MemoryKills {
  readonly #root: string;
  #seen: number | null;

  /** `root`: where /proc and /sys lie. */
  constructor(root = "/") {
    this.#root = root;
    this.#seen = this.#count();
  }

  /** Processes start: what was counted before is none of them. */
  note(): void {
    this.#seen = this.#count();
  }

  /** Whether the count has risen since; each kill explains one end. Null: nobody counts. */
  explainsOne(): boolean | null {
    const now = this.#count();
    const before = this.#seen;
    if (now === null || before === null) {
      this.#seen = now;
      return null;
    }
    if (now <= before) return false;
    this.#seen = before + 1;
    return true;
  }

  #count(): number | null {
    for (const path of this.#sources()) {
      const [, count] = /^oom_kill (\d+)$/m.exec(this.#read(path)) ?? [];
      if (count !== undefined) return Number(count);
    }
    return null;
  }

  /** The group's own file in either hierarchy of cgroups, then the machine's. */
  #sources(): string[] {
    const groups = this.#read("proc/self/cgroup");
    const [, unified] = /^0::(\/.*)$/m.exec(groups) ?? [];
    const [, memory] = /^\d+:(?:[^:]*,)?memory(?:,[^:]*)?:(\/.*)$/m.exec(groups) ?? [];
    return [
      ...(unified === undefined ? [] : [join("sys/fs/cgroup", unified, "memory.events")]),
      ...(memory === undefined ? [] : [join("sys/fs/cgroup/memory", memory, "memory.oom_control")]),
      "proc/vmstat",
    ];
  }

  #read(path: string): string {
    try {
      return readFileSync(join(this.#root, path), "utf8");
    } catch (error) {
      if (!isSystemError(error)) throw error;
      return "";
    }
  }
}
