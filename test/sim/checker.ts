/**
 * The onlooker: sees what clients send and read and what engines are asked and do, nothing else, and says what was
 * wrong. Shares no code with src. Within one instant of virtual time there is no order that an onlooker could rely
 * on, so the rules are judged against what was so in an earlier instant.
 */
import type { EngineWatcher } from "./scripted-engine.ts";
import { type Seen, TaskStory } from "./task-story.ts";

export interface CheckerOptions {
  readonly pools: readonly { readonly id: string; readonly capacity: number }[];
  readonly batchMaxWaitMs: number;
  readonly attemptsMax: number;
  readonly disconnectGraceMs: number;
}

interface Instance {
  readonly id: number;
  readonly pool: string;
  readonly slots: number;
  readonly servesSinceMs: number;
  goneAtMs: number | null;
  /** Generation by slot, from its beginning until the engine freed the slot. */
  readonly taken: Map<number, number>;
}

interface Generation {
  readonly id: number;
  readonly instance: number;
  readonly story: TaskStory;
  spoken: number;
  aborted: boolean;
}

interface PoolSight {
  readonly id: string;
  readonly capacity: number;
  /** Sent and not known to be over before this instant. */
  readonly live: Set<TaskStory>;
  /** Starts that are not aged ones since the last aged one that overtook; Infinity: not known. */
  startsSinceOvertaken: number;
}

export class Checker implements EngineWatcher {
  readonly violations: string[] = [];
  readonly stories = new Map<string, TaskStory>();
  readonly counts = { starts: 0, agedStarts: 0, putBacks: 0, engines: 0, enginesLost: 0, tokens: 0 };
  private readonly pools: Map<string, PoolSight>;
  private readonly instances = new Map<number, Instance>();
  private readonly running = new Map<number, Generation>();
  private readonly kinds = new Map<string, number>();
  private instantMs = 0;
  private closedAtMs = Number.POSITIVE_INFINITY;
  private drainedAtMs = Number.NaN;

  constructor(
    private readonly options: CheckerOptions,
    private readonly nowMs: () => number,
  ) {
    this.pools = new Map(
      options.pools.map((p) => [
        p.id,
        { ...p, live: new Set<TaskStory>(), startsSinceOvertaken: Number.POSITIVE_INFINITY },
      ]),
    );
  }

  /** Of violations that differ in their numbers only, the first ones are enough. */
  violation(what: string): void {
    const kind = what.replaceAll(/[\d.]+/g, "");
    const known = (this.kinds.get(kind) ?? 0) + 1;
    this.kinds.set(kind, known);
    if (known <= 3) this.violations.push(`at ${this.nowMs().toFixed(3)} ms: ${what}`);
  }

  // ---- what clients do and see ----

  submitted(seen: Omit<Seen, "nth" | "atMs">): void {
    this.look();
    const atMs = this.nowMs();
    const story = new TaskStory({ ...seen, nth: this.stories.size, atMs }, (what) => this.violation(what));
    this.stories.set(seen.taskId, story);
    this.poolOf(story).live.add(story);
  }

  accepted(taskId: string): void {
    this.look();
    const story = this.story(taskId);
    story.accepted = true;
    if (story.seen.atMs > this.closedAtMs)
      this.violation(`task ${story.nth} was taken after the daemon was closed`);
    if (story.phase === "sent") story.wait(story.seen.atMs);
  }

  refused(taskId: string, code: string): void {
    const nowMs = this.look();
    const story = this.story(taskId);
    story.refused = code;
    if (story.phase !== "sent") this.violation(`task ${story.nth} was refused after it ${story.phase}`);
    const pool = this.poolOf(story);
    // All that may have waited at some moment of this instant.
    const waiting = [...pool.live].filter(
      (s) => s !== story && (s.cutAtMs ?? nowMs) === nowMs && (s.leftQueueAtMs ?? nowMs) === nowMs,
    );
    if (code === "ADMISSION_REJECT") {
      if (waiting.length < pool.capacity)
        this.violation(
          `task ${story.nth} was refused, but ${waiting.length} of ${pool.capacity} tasks waited`,
        );
    } else if (code === "POOL_UNAVAILABLE") {
      if (this.serves(pool.id))
        this.violation(`task ${story.nth} was told POOL_UNAVAILABLE while an engine of ${pool.id} served`);
    } else if (code !== "POOL_UNREADY" || this.closedAtMs > nowMs)
      this.violation(`task ${story.nth} was refused with ${code}`);
    if (code !== "POOL_UNREADY" && this.closedAtMs < nowMs)
      this.violation(`task ${story.nth} was not told that the daemon is closed`);
  }

  cancelRequested(taskId: string): void {
    this.story(taskId).cancelAtMs ??= this.look();
  }

  cancelResolved(taskId: string): void {
    this.look();
    const story = this.story(taskId);
    story.cancelResolved = true;
    if (story.accepted && story.phase !== "ended")
      this.violation(`cancel of task ${story.nth} resolved while it was ${story.phase}`);
  }

  /** The next bytes of a task's log, as its first and fastest reader gets them. */
  frames(taskId: string, text: string): void {
    const nowMs = this.look();
    const story = this.story(taskId);
    story.read(text);
    if (story.terminal === null || story.phase === "ended") return;
    this.counts.tokens += story.tokens;
    // At the end of a drain whatever is live ends, for that reason alone.
    if (nowMs === this.drainedAtMs && story.terminal.code === "WORKER_RESET") story.leave("ended", nowMs);
    else
      story.judgeEnd(
        nowMs,
        this.serves(story.seen.poolId),
        this.counts.enginesLost > 0,
        this.options.attemptsMax,
      );
    story.leave("ended", nowMs);
  }

  /** What a viewer reads who came before the end; judged against the whole log later. */
  viewed(taskId: string, text: string): void {
    const story = this.story(taskId);
    if (story.cancelResolved && story.terminal?.code === "CANCELED" && text.includes("event: token"))
      this.violation(`a viewer of task ${story.nth} read a token after its cancel had resolved`);
  }

  /** From now on the daemon takes nothing new. */
  closed(): void {
    this.closedAtMs = this.look();
  }

  drained(): void {
    this.drainedAtMs = this.look();
  }

  /** The daemon says that nothing is live any more. */
  idle(): void {
    this.look();
    this.nothingLives("while the daemon says it is idle");
  }

  private nothingLives(when: string): void {
    for (const pool of this.pools.values())
      for (const { nth, phase, accepted } of pool.live)
        if (accepted && phase !== "ended") this.violation(`task ${nth} is ${phase} ${when}`);
  }

  viewerCame(taskId: string): void {
    this.look();
    this.story(taskId).viewers++;
  }

  viewerLeft(taskId: string): void {
    const nowMs = this.look();
    const story = this.story(taskId);
    story.viewers--;
    story.lastLeftAtMs = nowMs;
  }

  /** The daemon itself asks for the end of a task, because nobody watches it any more. */
  disconnected(taskId: string): void {
    this.cancelRequested(taskId);
    const story = this.story(taskId);
    const goneForMs = this.nowMs() - (story.lastLeftAtMs ?? Number.POSITIVE_INFINITY);
    if (
      story.seen.onDisconnect !== "cancel" ||
      story.viewers > 0 ||
      goneForMs < this.options.disconnectGraceMs - 0.001
    )
      this.violation(`task ${story.nth} was given up as unwatched, with ${story.viewers} viewers`);
  }

  private judgeWatchers(story: TaskStory, nowMs: number): void {
    if (story.seen.onDisconnect !== "cancel" || story.viewers > 0 || story.lastLeftAtMs === null) return;
    if (
      story.lastLeftAtMs + this.options.disconnectGraceMs < this.instantMs - 0.001 &&
      story.phase !== "ended"
    ) {
      story.lastLeftAtMs = null;
      this.violation(`task ${story.nth} goes on although its last viewer left long before ${nowMs}`);
    }
  }

  /** All that one viewer read. `from`: the frame that it was to be shown first. */
  viewerRead(taskId: string, from: number, text: string, closed: boolean): void {
    this.story(taskId).judgeViewer(from, text, closed);
  }

  // ---- what engines see ----

  engineServes(id: number, pool: string, _replicaId: string, slots: number): void {
    this.look();
    this.counts.engines++;
    this.instances.set(id, {
      id,
      pool,
      slots,
      servesSinceMs: this.nowMs(),
      goneAtMs: null,
      taken: new Map(),
    });
  }

  engineGone(id: number): void {
    const nowMs = this.look();
    const instance = this.instances.get(id);
    if (instance === undefined) return;
    this.counts.enginesLost++;
    instance.goneAtMs = nowMs;
    // Starts that were decided for it may never reach it: they cannot be counted from here.
    const pool = this.pools.get(instance.pool);
    if (pool !== undefined) pool.startsSinceOvertaken = Number.POSITIVE_INFINITY;
  }

  generationBegan(instanceId: number, slot: number, id: number, taskId: string): void {
    const nowMs = this.look();
    const story = this.story(taskId);
    const instance = this.instances.get(instanceId);
    this.counts.starts++;
    if (instance === undefined) this.violation(`task ${story.nth} started on an engine that was not ready`);
    else {
      if (instance.goneAtMs !== null && instance.goneAtMs < nowMs)
        this.violation(`task ${story.nth} started on an engine that was lost`);
      if (slot < 0 || slot >= instance.slots) this.violation(`task ${story.nth} started in slot ${slot}`);
      if (instance.taken.has(slot))
        this.violation(`task ${story.nth} started in slot ${slot}, which is busy`);
      if (instance.pool !== story.seen.poolId) this.violation(`task ${story.nth} started in another pool`);
      instance.taken.set(slot, id);
    }
    if (story.phase === "running" || story.phase === "ended")
      this.violation(`task ${story.nth} started while it was ${story.phase}`);
    this.judgeOrder(story, nowMs);
    story.leave("running", nowMs);
    story.begin(id);
    if (story.attempts > this.options.attemptsMax)
      this.violation(`task ${story.nth} had ${story.attempts} attempts`);
    this.running.set(id, { id, instance: instanceId, story, spoken: 0, aborted: false });
  }

  generationSpoke(id: number): void {
    this.look();
    const generation = this.running.get(id);
    if (generation === undefined) return;
    generation.spoken++;
    generation.story.spoken = generation.spoken;
  }

  generationAborted(id: number): void {
    this.look();
    const generation = this.running.get(id);
    if (generation !== undefined) generation.aborted = true;
  }

  generationEnded(id: number, how: "finished" | "refused" | "broken"): void {
    const nowMs = this.look();
    const generation = this.running.get(id);
    this.running.delete(id);
    if (generation === undefined) return;
    const { story } = generation;
    story.lastEnd = how === "broken" && generation.aborted ? "aborted" : how;
    if (story.phase !== "running") return;
    if (story.lastEnd === "finished" || story.lastEnd === "refused" || generation.spoken > 0)
      story.leave("ending", nowMs);
    else {
      this.counts.putBacks++;
      story.cutAtMs ??= nowMs;
      story.wait(nowMs);
    }
  }

  slotFreed(instance: number, slot: number): void {
    this.look();
    this.instances.get(instance)?.taken.delete(slot);
  }

  // ---- rules ----

  /** Order among the starts of a pool. */
  private judgeOrder(story: TaskStory, nowMs: number): void {
    const pool = this.poolOf(story);
    const { batchMaxWaitMs } = this.options;
    const waiting = [...pool.live].filter((s) => s !== story && s.certainlyWaits(nowMs));
    const passed = waiting.find((s) => s.seen.priority === story.seen.priority && s.nth < story.nth);
    if (passed !== undefined)
      this.violation(`task ${story.nth} started before task ${passed.nth} of its class`);
    const batch = story.seen.priority === "batch";
    const interactive = waiting.find((s) => s.seen.priority === "interactive");
    if (batch && interactive !== undefined) {
      this.counts.agedStarts++;
      if (nowMs - story.seen.atMs < batchMaxWaitMs)
        this.violation(`batch task ${story.nth} started before interactive task ${interactive.nth}`);
      if (pool.startsSinceOvertaken < 3)
        this.violation(`batch task ${story.nth} overtook after ${pool.startsSinceOvertaken} other starts`);
      pool.startsSinceOvertaken = 0;
    } else pool.startsSinceOvertaken++;
    for (const other of waiting) {
      if (other.seen.priority !== "batch" || other.seen.atMs + batchMaxWaitMs >= nowMs) continue;
      if (batch) other.batchStartsWhileAged++;
      else other.interactiveStartsWhileAged++;
      // Every fourth start is a batch task's: the stated bound of 4(k+1), seen from the other side.
      if (other.interactiveStartsWhileAged > 3 * (other.batchStartsWhileAged + 1))
        this.violation(
          `aged batch task ${other.nth} watched ${other.interactiveStartsWhileAged} interactive starts`,
        );
    }
  }

  /** Called with every observation: when time has moved, what was left of the instant before is judged. */
  private look(): number {
    const nowMs = this.nowMs();
    if (nowMs === this.instantMs) return nowMs;
    if (this.drainedAtMs === this.instantMs) this.nothingLives("after the drain");
    for (const pool of this.pools.values()) {
      for (const story of pool.live) {
        if (story.phase === "ended" || story.refused !== null) pool.live.delete(story);
        else this.judgeWatchers(story, nowMs);
      }
      const waiting = [...pool.live].filter((s) => s.accepted && s.phase === "waiting");
      const counted = waiting.filter((s) => s.cutAtMs === null).length;
      if (counted > pool.capacity)
        this.violation(`${counted} tasks waited in ${pool.id}, which has ${pool.capacity} places`);
      if (waiting.length === 0) continue;
      const idle = this.serving(pool.id).find((i) => i.taken.size < i.slots);
      if (idle !== undefined)
        this.violation(
          `engine ${idle.id} of ${pool.id} had a free slot while ${waiting.length} tasks waited`,
        );
    }
    for (const { story, aborted } of this.running.values())
      if (story.phase === "ended" && !aborted)
        this.violation(`an engine still works for task ${story.nth}, which ended`);
    this.instantMs = nowMs;
    return nowMs;
  }

  /** After everything had its time to settle. */
  finish(): void {
    this.look();
    for (const story of this.stories.values()) {
      if (story.refused !== null) continue;
      if (!story.accepted) this.violation(`task ${story.nth} was never answered`);
      else if (story.phase !== "ended")
        this.violation(`task ${story.nth} is lost: it is still ${story.phase}`);
    }
    if (this.running.size > 0) this.violation(`${this.running.size} generations still run`);
  }

  private story(taskId: string): TaskStory {
    const story = this.stories.get(taskId);
    if (story === undefined) throw new Error(`nobody sent task ${taskId}`);
    return story;
  }

  private poolOf(story: TaskStory): PoolSight {
    const pool = this.pools.get(story.seen.poolId);
    if (pool === undefined) throw new Error(`there is no pool ${story.seen.poolId}`);
    return pool;
  }

  private serving(pool: string): Instance[] {
    const found: Instance[] = [];
    for (const one of this.instances.values())
      if (one.pool === pool && one.goneAtMs === null) found.push(one);
    return found;
  }

  /** Since an earlier instant. */
  private serves(pool: string): boolean {
    return this.serving(pool).some((i) => i.servesSinceMs < this.nowMs());
  }
}
