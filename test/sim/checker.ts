/**
 * The onlooker: sees what clients send and read and what engines are asked and do, nothing else, and says what was
 * wrong. Shares no code with src. Within one instant of virtual time there is no order that an onlooker could rely
 * on, so the rules are judged against what was so in an earlier instant.
 */
import { type Instance, PoolRules, type PoolRulesOptions, type Taken } from "./pool-rules.ts";
import type { Asked, EngineWatcher } from "./scripted-engine.ts";
import { SessionRules } from "./session-rules.ts";
import { type EndRules, type Seen, TaskStory } from "./task-story.ts";

export interface CheckerOptions extends EndRules {
  readonly pools: readonly Pick<PoolRulesOptions, "id" | "capacity" | "fullPolicy" | "preempt">[];
  readonly order: Pick<PoolRulesOptions, "batchMaxWaitMs" | "fair" | "affinityWaitMs">;
  readonly sessions: { readonly ttlMs: number; readonly turnsMax: number };
  readonly disconnectGraceMs: number;
  readonly watchdogs: { readonly firstTokenMs: number; readonly interTokenMs: number };
}

interface Generation {
  readonly slot: number;
  readonly id: number;
  readonly instance: number;
  readonly story: TaskStory;
  spoken: number;
  readonly position: number;
  aborted: boolean;
  readonly beganAtMs: number;
  /** When it began or spoke last. */
  signAtMs: number;
}

export class Checker implements EngineWatcher {
  readonly violations: string[] = [];
  readonly stories = new Map<string, TaskStory>();
  private goneAtMs = 0;
  readonly counts = {
    starts: 0,
    putBacks: 0,
    continued: 0,
    suspects: 0,
    engines: 0,
    enginesLost: 0,
    tokens: 0,
    restarts: 0,
    drainCuts: 0,
  };
  private readonly pools: Map<string, PoolRules>;
  private readonly sessions: SessionRules;
  private readonly instances = new Map<number, Instance>();
  private readonly running = new Map<number, Generation>();
  private readonly kinds = new Map<string, number>();
  private instantMs = 0;
  private closedAtMs = Number.POSITIVE_INFINITY;
  /** No daemon runs: what falls due meanwhile is the next one's business. */
  private away = false;

  constructor(
    private readonly options: CheckerOptions,
    private readonly nowMs: () => number,
  ) {
    const violation = (what: string) => this.violation(what);
    this.pools = new Map(
      options.pools.map((p) => [p.id, new PoolRules({ ...p, ...options.order }, violation)]),
    );
    this.sessions = new SessionRules(options.sessions, violation);
  }

  get agedStarts(): number {
    let sum = 0;
    for (const pool of this.pools.values()) sum += pool.agedStarts;
    return sum;
  }

  get preempted(): number {
    let sum = 0;
    for (const pool of this.pools.values()) sum += pool.preemption.cuts;
    return sum;
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
    const nowMs = this.look();
    const story = this.story(taskId);
    story.accepted = true;
    if (story.seen.atMs > this.closedAtMs)
      this.violation(`task ${story.nth} was taken after the daemon was closed`);
    if (story.phase === "sent") story.wait(story.seen.atMs);
    this.sessions.accepted(story, nowMs);
    if (story.phase === "ended") this.sessions.ended(story, nowMs);
  }

  refused(taskId: string, code: string): void {
    const nowMs = this.look();
    const story = this.story(taskId);
    story.refused = code;
    if (story.phase !== "sent") this.violation(`task ${story.nth} was refused after it ${story.phase}`);
    if (code !== "POOL_UNREADY" && this.closedAtMs < nowMs)
      this.violation(`task ${story.nth} was not told that the daemon is closed`);
    const pool = this.poolOf(story);
    if (pool.judgeRefusal(story, code, nowMs) || this.sessions.refused(story, code, nowMs)) return;
    if (code === "POOL_UNAVAILABLE") {
      if (this.serves(pool.options.id))
        this.violation(`task ${story.nth} was told POOL_UNAVAILABLE while an engine of its pool served`);
    } else if (code === "DEADLINE_UNMET" && story.seen.deadlineMs !== null) return;
    else if (code !== "POOL_UNREADY" || this.closedAtMs > nowMs)
      this.violation(`task ${story.nth} was refused with ${code}`);
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
    if (story.terminal.code === "QUEUE_FULL_DROP_LRU") this.poolOf(story).judgeDrop(story, nowMs);
    story.judgeEnd(nowMs, this.serves(story.seen.poolId), this.options);
    if (story.startsUnseen) this.poolOf(story).countAnew();
    // It may have been the one that a slot was cut for.
    if (story.seen.priority === "interactive" && story.phase === "waiting") {
      this.poolOf(story).preemption.doubt();
      this.poolOf(story).countAnew();
    }
    story.leave("ended", nowMs);
    this.sessions.ended(story, nowMs);
  }

  /** What a viewer reads who came before the end; judged against the whole log later. */
  viewed(taskId: string, text: string): void {
    const story = this.story(taskId);
    if (story.cancelResolved && story.terminal?.code === "CANCELED" && text.includes("event: token"))
      this.violation(`a viewer of task ${story.nth} read a token after its cancel had resolved`);
  }

  /** Nothing may start there from the next instant on. */
  drained(poolId: string): void {
    this.pools.get(poolId)?.drained(this.look());
  }

  /** What runs there has had its time. */
  drainDeadline(poolId: string): void {
    const nowMs = this.look();
    const pool = this.pools.get(poolId);
    if (pool === undefined || pool.drainedAtMs === null) return;
    pool.cutAtMs = nowMs;
    // The engine may take its time to let go; the daemon may not.
    for (const { story } of this.running.values()) if (this.poolOf(story) === pool) pool.mustEnd.add(story);
  }

  resumed(poolId: string): void {
    this.look();
    this.pools.get(poolId)?.resumed();
  }

  /** From now on the daemon takes nothing new. */
  closed(): void {
    this.closedAtMs = this.look();
  }

  /** The daemon says that nothing runs any more. */
  idle(): void {
    this.look();
    for (const pool of this.pools.values())
      for (const { nth, phase } of pool.live)
        if (phase === "running") this.violation(`task ${nth} is running while the daemon says it is idle`);
  }

  /** The daemon is gone, and its engines with it. */
  gone(): void {
    const nowMs = this.look();
    this.goneAtMs = nowMs;
    this.away = true;
    this.counts.restarts++;
    this.running.clear();
    for (const instance of this.instances.values()) instance.goneAtMs ??= nowMs;
    for (const pool of this.pools.values()) {
      pool.instances.clear();
      pool.lostCount();
      pool.preemption.forget();
    }
  }

  /**
   * It is back. `live`: the tasks that it will work on, in its order, how many words of each it knows, and whether it was
   * seen to run; `knows`: those it remembers as ended. Whoever
   * had an answer finds his task in one of them, an ended one never in the first.
   */
  cameBack(
    live: readonly { taskId: string; words: number; seen: boolean }[],
    knows: (taskId: string) => boolean,
  ): void {
    const nowMs = this.look();
    this.closedAtMs = Number.POSITIVE_INFINITY;
    this.away = false;
    const again = new Set(live.map(({ taskId }) => taskId));
    if (again.size < live.length) this.violation("a task was recovered twice");
    let last = -1;
    for (const { taskId, words, seen } of live) {
      const story = this.story(taskId);
      if (story.nth < last) this.violation(`task ${story.nth} was recovered behind task ${last}`);
      last = story.nth;
      if (story.phase === "ended") this.violation(`task ${story.nth} had ended and was recovered`);
      if (story.cancelResolved) this.violation(`task ${story.nth} was canceled and was recovered`);
      if (story.refused !== null) this.violation(`task ${story.nth} was refused and was recovered`);
      const unanswered = !story.accepted;
      story.waitAgain(nowMs, words, seen);
      // Who watched it comes back within the grace; what nobody ever watched runs on. Of a first viewer of the very
      // last moment the daemon may know or not.
      story.lastLeftAtMs = story.watchedAtMs === null ? null : nowMs;
      story.watchUnsure = story.watchedAtMs !== null && story.watchedAtMs >= this.goneAtMs;
      this.poolOf(story).live.add(story);
      if (unanswered) this.sessions.accepted(story, nowMs);
    }
    for (const story of this.stories.values()) {
      if (again.has(story.seen.taskId) || story.phase === "ended" || story.refused !== null) continue;
      if (story.accepted && !knows(story.seen.taskId))
        this.violation(`task ${story.nth} is lost: it was ${story.phase} when the daemon was restarted`);
      // Its end was stored and nobody heard of it, or it was never taken.
      if (story.accepted) this.sessions.ended(story, nowMs);
      else story.refused = "NO_ANSWER";
      story.leave("ended", nowMs);
      story.unheard = true;
    }
  }

  viewerCame(taskId: string): void {
    const nowMs = this.look();
    const story = this.story(taskId);
    story.viewers++;
    story.watchedAtMs ??= nowMs;
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
    if (story.watchUnsure || this.away) return;
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
    const servesSinceMs = this.nowMs();
    const instance: Instance = { id, pool, slots, servesSinceMs, goneAtMs: null, taken: new Map() };
    this.instances.set(id, instance);
    this.pools.get(pool)?.instances.add(instance);
  }

  engineGone(id: number): void {
    const nowMs = this.look();
    const instance = this.instances.get(id);
    if (instance === undefined) return;
    this.counts.enginesLost++;
    instance.goneAtMs = nowMs;
    const pool = this.pools.get(instance.pool);
    pool?.instances.delete(instance);
    pool?.lostCount();
  }

  generationBegan(instanceId: number, slot: number, id: number, asked: Asked): void {
    const nowMs = this.look();
    const { taskId, position } = asked;
    const story = this.story(taskId);
    const instance = this.instances.get(instanceId);
    const pool = this.poolOf(story);
    this.counts.starts++;
    if (instance === undefined) this.violation(`task ${story.nth} started on an engine that was not ready`);
    else {
      pool.judgeSlot(story, instance, slot, nowMs);
      if ([...instance.taken.values()].some(({ lostAtMs }) => lostAtMs !== null && lostAtMs < nowMs))
        this.violation(`task ${story.nth} started on engine ${instanceId}, which had broken off`);
      instance.taken.set(slot, { story, alone: story.alone, letGo: false, lost: false, lostAtMs: null });
    }
    if (this.closedAtMs < nowMs) this.violation(`task ${story.nth} started after the daemon was closed`);
    if (story.phase === "running" || story.phase === "ended")
      this.violation(`task ${story.nth} started while it was ${story.phase}`);
    const { deadlineMs, atMs } = story.seen;
    // What had been said is worth going on with.
    const begins = story.reached === 0 && story.preempted === 0 && !story.drainCut;
    if (deadlineMs !== null && atMs + deadlineMs < nowMs - 0.001 && begins)
      this.violation(`task ${story.nth} started after its deadline`);
    pool.judgeHeld(story, nowMs);
    pool.judgeOrder(story, nowMs);
    story.leave("running", nowMs);
    story.judgeAsked(asked);
    if (story.reached > 0) this.counts.continued++;
    if (story.alone && !story.seen.strict) this.counts.suspects++;
    if (story.fruitless >= this.options.attemptsMax)
      this.violation(`task ${story.nth} had ${story.fruitless + 1} attempts without a new word`);
    story.begin();
    this.running.set(id, {
      ...{ id, instance: instanceId, slot, story, position },
      ...{ spoken: 0, aborted: false, beganAtMs: nowMs, signAtMs: nowMs },
    });
  }

  generationSpoke(id: number, words: number): void {
    const nowMs = this.look();
    const generation = this.running.get(id);
    if (generation === undefined) return;
    generation.signAtMs = nowMs;
    generation.spoken += words;
    generation.story.heard(generation.position + generation.spoken);
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
    if (story.lastEnd === "finished" || story.lastEnd === "refused") story.leave("ending", nowMs);
    else {
      this.counts.putBacks++;
      story.cutAtMs ??= nowMs;
      if (this.wasLetGo(generation, nowMs)) {
        story.letGo();
        const taken = this.slotOf(generation);
        if (taken !== null) taken.letGo = true;
        const pool = this.poolOf(story);
        if (pool.cutsAt(nowMs)) {
          story.drainCut = true;
          this.counts.drainCuts++;
        } else pool.preemption.cut(story, pool.live, nowMs);
      } else {
        story.lost();
        this.noteLost(generation, nowMs);
      }
      story.wait(nowMs);
    }
  }

  private noteLost(generation: Generation, nowMs: number): void {
    const { cancelAtMs, seen } = generation.story;
    // Of one that ended in that moment nobody asks what became of its attempt.
    const goesOn = cancelAtMs === null && (seen.deadlineMs === null || seen.atMs + seen.deadlineMs > nowMs);
    const taken = this.slotOf(generation);
    if (taken === null) return;
    taken.lost = true;
    if (!generation.aborted && goesOn) taken.lostAtMs ??= nowMs;
  }

  private slotOf({ instance, slot }: Generation): Taken | null {
    return this.instances.get(instance)?.taken.get(slot) ?? null;
  }

  /** Not by its engine, and no watchdog can have been the reason. */
  private wasLetGo({ aborted, story, spoken, signAtMs }: Generation, nowMs: number): boolean {
    const { firstTokenMs, interTokenMs } = this.options.watchdogs;
    const patienceMs = spoken > 0 ? interTokenMs : firstTokenMs;
    return aborted && story.cancelAtMs === null && nowMs - signAtMs < patienceMs - 0.001;
  }

  slotFreed(instance: number, slot: number): void {
    this.look();
    this.instances.get(instance)?.taken.delete(slot);
  }

  // ---- rules ----

  /** Called with every observation: when time has moved, what was left of the instant before is judged. */
  private look(): number {
    const nowMs = this.nowMs();
    if (nowMs === this.instantMs) return nowMs;
    for (const pool of this.pools.values()) {
      for (const story of pool.live) {
        if (story.phase === "ended" || story.refused !== null) pool.live.delete(story);
        else this.judgeWatchers(story, nowMs);
      }
      // Whoever waits for the end of a drain waits for the next start.
      if (this.closedAtMs < Number.POSITIVE_INFINITY) {
        pool.preemption.forget();
        continue;
      }
      pool.judgeRest(nowMs, this.instantMs);
      if (pool.drainedAtMs !== null) {
        this.judgeDrainDeadline(pool);
        pool.preemption.pause(this.instantMs);
        continue;
      }
      const running = [...this.running.values()].filter(({ story }) => this.poolOf(story) === pool);
      pool.preemption.judgeRest(
        pool.live,
        running.map(({ story, beganAtMs: atMs }) => ({ story, atMs })),
        [...pool.instances].some(({ taken }) => [...taken.values()].some(({ letGo }) => letGo)),
        this.instantMs,
      );
    }
    for (const { story, aborted } of this.running.values())
      if (story.phase === "ended" && !aborted)
        this.violation(`an engine still works for task ${story.nth}, which ended`);
    this.instantMs = nowMs;
    return nowMs;
  }

  /** In the instant after the deadline of a drain nothing of it runs any more. */
  private judgeDrainDeadline(pool: PoolRules): void {
    for (const generation of this.running.values())
      if (pool.mustEnd.has(generation.story) && !generation.aborted)
        this.violation(`task ${generation.story.nth} runs on behind the deadline of the drain`);
    pool.mustEnd.clear();
  }

  /** After everything had its time to settle. */
  finish(): void {
    this.look();
    for (const story of this.stories.values()) {
      if (story.refused !== null) continue;
      if (story.unheard) continue;
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

  private poolOf(story: TaskStory): PoolRules {
    const pool = this.pools.get(story.seen.poolId);
    if (pool === undefined) throw new Error(`there is no pool ${story.seen.poolId}`);
    return pool;
  }

  /** Since an earlier instant. */
  private serves(pool: string): boolean {
    const instances = [...(this.pools.get(pool)?.instances ?? [])];
    return instances.some((i) => i.servesSinceMs < this.nowMs());
  }
}
