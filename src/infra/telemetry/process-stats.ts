/**
 * What the operating system knows of this process, read at the moment of a scrape (0.01 ms together).
 * prom-metrics.ts asks. prom-client's own default metrics are not used: they walk the heap, 2 to 9 ms each time.
 */
import { readdirSync } from "node:fs";

export interface ProcessStats {
  readonly residentBytes: number;
  readonly cpuSeconds: number;
  /** Null where there is no /proc. */
  readonly openFds: number | null;
}

export function readProcessStats(): ProcessStats {
  const { user, system } = process.cpuUsage();
  return {
    residentBytes: process.memoryUsage.rss(),
    cpuSeconds: (user + system) / 1e6,
    openFds: countOpenFds(),
  };
}

function countOpenFds(): number | null {
  try {
    // The listing itself holds one.
    return readdirSync("/proc/self/fd").length - 1;
  } catch {
    // Not Linux, or /proc is not mounted: absent, never invented.
    return null;
  }
}
