/** What the daemon's own log says of each load of a model: when its parts were over. swaps-report.ts reads it. */

/** Milliseconds; the log's resolution is one. */
export interface LoadTimes {
  readonly poolId: string;
  /** The first of this replica since the daemon's start. */
  readonly first: boolean;
  /** From when its oldest task came, or it was unloaded itself where that is later, until it was ready. */
  readonly wantedMs: number;
  /** From the order to start until the engine's health was good. */
  readonly loadMs: number;
  /** From then until it had decoded. */
  readonly warmUpMs: number;
  /** From then until the first task was started on it. */
  readonly lagMs: number;
}

interface Line {
  readonly event: string;
  readonly time: string;
  readonly replica_id: string | null;
  readonly pool_id: string;
  readonly task_id?: string;
  readonly to?: string;
}

const events = ["task_admitted", "task_started", "replica_state_changed"];

const linesOf = (log: string): Line[] =>
  log
    .split("\n")
    .filter((line) => events.some((event) => line.includes(`"event":"${event}"`)))
    .map((line) => JSON.parse(line) as Line);

/** In the order of the log; loads that no task followed are left out. Tasks of one class start in the order they came. */
export function loadTimes(log: string): LoadTimes[] {
  const found: LoadTimes[] = [];
  const admittedMs = new Map<string, number>();
  const states = new Map<string, Map<string, number>>();
  const before = new Set<string>();
  for (const { event, time, replica_id, pool_id, task_id = "", to = "" } of linesOf(log)) {
    const atMs = Date.parse(time);
    const times = states.get(replica_id ?? "") ?? new Map<string, number>();
    if (replica_id !== null) states.set(replica_id, times);
    if (event === "task_admitted") admittedMs.set(task_id, atMs);
    else if (event === "replica_state_changed") times.set(to, atMs);
    else {
      const [startMs, warmingMs, readyMs] = [times.get("starting"), times.get("warming"), times.get("ready")];
      // Only the first task after a load is told with it.
      times.delete("starting");
      if (startMs === undefined || warmingMs === undefined || readyMs === undefined) continue;
      const cameMs = admittedMs.get(task_id) ?? startMs;
      found.push({
        poolId: pool_id,
        first: !before.has(replica_id ?? ""),
        wantedMs: readyMs - Math.max(cameMs, times.get("stopped") ?? 0),
        loadMs: warmingMs - startMs,
        warmUpMs: readyMs - warmingMs,
        lagMs: atMs - readyMs,
      });
      before.add(replica_id ?? "");
    }
  }
  return found;
}

/** Milliseconds from the order to stop until the process was reaped, of each. */
export function stopTimes(log: string): number[] {
  const since = new Map<string, number>();
  const found: number[] = [];
  for (const { event, time, replica_id, to } of linesOf(log)) {
    if (event !== "replica_state_changed" || replica_id === null) continue;
    if (to === "stopping") since.set(replica_id, Date.parse(time));
    const stoppingMs = since.get(replica_id);
    if (to !== "stopped" || stoppingMs === undefined) continue;
    found.push(Date.parse(time) - stoppingMs);
    since.delete(replica_id);
  }
  return found;
}
