/**
 * One class of a queue with `fair: per-key`: a line for each key, served by deficit round robin (Shreedhar and
 * Varghese, "Efficient fair queuing using deficit round robin", 1995). Called by the queue only, which holds the same
 * tasks in the order of admission as well.
 *
 * The keys that wait stand in a ring. At its turn a key is credited with one quantum and starts tasks from the front
 * of its line while its credit covers their expected service; what is left stays for its next turn, and is lost when
 * its line is empty. A key that comes new stands behind all others. A key of which nothing can start just now (the
 * pass leaves none) is passed over without credit.
 *
 * Bound: let a task that is first in its key's line expect c ms, and let m be the longest task of the others. It is
 * started at its key's turn number ceil(c/quantum) at the latest; till then each other key starts tasks of less than
 * ceil(c/quantum)*quantum + m ms together, whatever arrives meanwhile.
 *
 * K keys that wait: choosing and charging take O(K), what is ahead of a task O(K log n). No loop runs by rounds: the
 * turns that a task is away from its start follow from its cost, so that a huge task costs no more than a small one.
 */
import { assert } from "./assert.ts";
import { limits } from "./limits.ts";
import { costTicks, type Front, type Ordered, OrderedTree, type Pass, ticksPerMs } from "./ordered-tree.ts";

const quantum = limits.fairQuantumMs * ticksPerMs;

export interface Keyed extends Ordered {
  readonly keyId: string;
}

interface Line<E extends Keyed> {
  readonly keyId: string;
  readonly tasks: OrderedTree<E>;
  creditTicks: number;
}

/** When a key is served: after so many more turns of its own, and where its turn stands among those of the others. */
interface Turn {
  readonly turns: number;
  readonly place: number;
}

export class FairLines<E extends Keyed> {
  private readonly lines = new Map<string, Line<E>>();
  private readonly ring: Line<E>[] = [];
  /** Whose turn it is. */
  private current = 0;
  /** It has had its quantum for this turn. */
  private credited = false;

  add(entry: E): void {
    let line = this.lines.get(entry.keyId);
    if (line === undefined) {
      line = { keyId: entry.keyId, tasks: new OrderedTree(), creditTicks: 0 };
      this.lines.set(entry.keyId, line);
      // The end of the ring is just before the one whose turn it is.
      this.ring.splice(this.current, 0, line);
      this.current = this.ring.length === 1 ? 0 : this.current + 1;
    }
    line.tasks.insert(entry);
  }

  remove(entry: E): void {
    const line = this.lineOf(entry);
    line.tasks.remove(entry);
    if (line.tasks.count > 0) return;
    this.lines.delete(line.keyId);
    const at = this.ring.indexOf(line);
    this.ring.splice(at, 1);
    if (at < this.current) this.current--;
    else if (at === this.current) this.credited = false;
    if (this.current >= this.ring.length) this.current = 0;
  }

  /** What starts next; changes nothing. */
  next(pass: Pass): E | null {
    let best: { entry: E; turn: Turn } | null = null;
    for (let away = 0; away < this.ring.length; away++) {
      const line = this.at(away);
      const entry = line.tasks.first(pass);
      if (entry === null) continue;
      const turn = this.turnOf(line, away, costTicks(entry));
      if (best === null || precedes(turn, best.turn)) best = { entry, turn };
    }
    return best?.entry ?? null;
  }

  /** It starts now, as `next` said for the same pass: the turns until then have passed. */
  charge(entry: E, pass: Pass): void {
    const chosen = this.lineOf(entry);
    const chosenAway = this.awayOf(chosen);
    const turn = this.turnOf(chosen, chosenAway, costTicks(entry));
    for (let away = 0; away < this.ring.length; away++) {
      const line = this.at(away);
      if (line === chosen || line.tasks.first(pass) === null) continue;
      line.creditTicks += quantum * Math.max(0, this.turnsBefore(turn, away));
    }
    chosen.creditTicks += quantum * turn.turns - costTicks(entry);
    assert(chosen.creditTicks >= 0, "a key spends no more than its credit");
    this.current = (this.current + chosenAway) % this.ring.length;
    this.credited = true;
  }

  /** What starts before this one, when nothing new comes and nothing is passed over. */
  aheadOf(entry: E): Front {
    const line = this.lineOf(entry);
    const own = line.tasks.before(entry.ordinal);
    return this.ahead(line, this.awayOf(line), own, costTicks(entry));
  }

  /** The same for a task that would come now. */
  aheadOfNew(keyId: string, expectedMs: number): Front {
    const line = this.lines.get(keyId);
    const cost = costTicks({ expectedMs });
    if (line === undefined) return this.ahead(null, this.ring.length, { tasks: 0, ticks: 0 }, cost);
    return this.ahead(line, this.awayOf(line), { tasks: line.tasks.count, ticks: line.tasks.ticks }, cost);
  }

  private ahead(line: Line<E> | null, away: number, own: Front, cost: number): Front {
    const turn = this.turnOf(line, away, own.ticks + cost);
    let { tasks, ticks } = own;
    for (let otherAway = 0; otherAway < this.ring.length; otherAway++) {
      const other = this.at(otherAway);
      if (other === line) continue;
      const turns = this.turnsBefore(turn, otherAway);
      // The one whose turn it is goes on with the credit it has; the others start nothing before their turn.
      if (turns < (this.isNow(otherAway) ? 0 : 1)) continue;
      const served = other.tasks.within(other.creditTicks + quantum * turns);
      tasks += served.tasks;
      ticks += served.ticks;
    }
    return { tasks, ticks };
  }

  /** The turn at which a key has started so much from the front of its line. */
  private turnOf(line: Line<E> | null, away: number, workTicks: number): Turn {
    const now = this.isNow(away);
    const turns = Math.ceil((workTicks - (line?.creditTicks ?? 0)) / quantum);
    return { turns: Math.max(now ? 0 : 1, turns), place: this.placeOf(away) };
  }

  /** How many turns a key has had before another's turn comes, not counting the one that it has now. */
  private turnsBefore(turn: Turn, away: number): number {
    return this.placeOf(away) < turn.place ? turn.turns : turn.turns - 1;
  }

  private isNow(away: number): boolean {
    return away === 0 && this.credited;
  }

  /** The next turn of the one that has had its quantum comes after everybody else's. */
  private placeOf(away: number): number {
    return this.isNow(away) ? this.ring.length + 1 : away;
  }

  private at(away: number): Line<E> {
    const line = this.ring[(this.current + away) % this.ring.length];
    assert(line !== undefined, "the ring has no gaps");
    return line;
  }

  private awayOf(line: Line<E>): number {
    return (this.ring.indexOf(line) - this.current + this.ring.length) % this.ring.length;
  }

  private lineOf(entry: E): Line<E> {
    const line = this.lines.get(entry.keyId);
    assert(line !== undefined, `key ${entry.keyId} has a line`);
    return line;
  }
}

const precedes = (a: Turn, b: Turn): boolean =>
  a.turns < b.turns || (a.turns === b.turns && a.place < b.place);
