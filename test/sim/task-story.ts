import { type Asked, wordOf } from "./scripted-engine.ts";

/**
 * What the onlooker knows of one task: where it is by what engines do, and what its log says, frame by frame.
 * The rules about a single task's stream are here; those about many tasks in checker.ts.
 */

export interface EndRules {
  readonly attemptsMax: number;
  /** What runs is cut when its deadline passes. */
  readonly cutAtDeadline: boolean;
}

export interface Seen {
  readonly taskId: string;
  readonly poolId: string;
  readonly keyId: string;
  readonly sessionId: string | null;
  /** What it asks its session to be bounded by, tokens. */
  readonly budgetTokens: number | null;
  /** It must be alone on its engine. */
  readonly strict: boolean;
  readonly tokensIn: number;
  readonly priority: "interactive" | "batch";
  readonly tokens: number;
  readonly greedy: boolean;
  readonly deadlineMs: number | null;
  readonly onDisconnect: "cancel" | "continue";
  /** Order of sending. */
  readonly nth: number;
  readonly atMs: number;
}

/**
 * So long before its deadline a task that waits may be given up, because no engine here could make it any more: what
 * a slow one takes for so many tokens.
 */
const earlyMs = (tokens: number): number => 15 + 18 * tokens;

/** After so many losses in a row a task runs alone, unless an attempt said so many new words. */
const sharedLosses = 2;
const clearingWords = 4;

export class TaskStory {
  accepted = false;
  refused: string | null = null;
  phase: "sent" | "waiting" | "running" | "ending" | "ended" = "sent";
  waitsSinceMs = 0;
  leftQueueAtMs: number | null = null;
  /** When it was first put back after a start: from then on it does not count against the capacity. */
  cutAtMs: number | null = null;
  /** It was there when a daemon came back. */
  recovered = false;
  /** When something first started before it, although it had come earlier. */
  passedSinceMs: number | null = null;
  /** Those that count for on_disconnect. */
  viewers = 0;
  lastLeftAtMs: number | null = null;
  /** Its first viewer that counts came. */
  watchedAtMs: number | null = null;
  /** Whether the daemon still knew that after a restart cannot be told. */
  watchUnsure = false;
  cancelAtMs: number | null = null;
  cancelResolved = false;
  /** It ended while the daemon was away: its last frame was seen by nobody. */
  unheard = false;
  /** What its readers had been told when a daemon was killed; the next one tells the same and goes on. */
  private told = "";
  attempts = 0;
  /** Words that engines have said, counted once whatever the attempts. */
  reached = 0;
  /** Attempts in a row without a new word. */
  fruitless = 0;
  /** Attempts in a row that were lost without much that was new. */
  private losses = 0;
  /** How often it was cut for another task. */
  preempted = 0;
  /** It was cut because its pool was drained: it goes on, however late. */
  drainCut = false;
  /** Of the last attempt. */
  private newWords = 0;
  lastEnd: "finished" | "refused" | "broken" | "aborted" | null = null;
  batchStartsWhileAged = 0;
  interactiveStartsWhileAged = 0;
  /** Of its log. */
  text = "";
  frames = 0;
  tokens = 0;
  terminal: { readonly event: string; readonly code: string } | null = null;
  private started = false;

  constructor(
    readonly seen: Seen,
    private readonly violation: (what: string) => void,
  ) {}

  get nth(): number {
    return this.seen.nth;
  }

  wait(sinceMs: number): void {
    this.phase = "waiting";
    this.waitsSinceMs = sinceMs;
    this.leftQueueAtMs = null;
    this.batchStartsWhileAged = 0;
    this.interactiveStartsWhileAged = 0;
  }

  leave(to: "running" | "ending" | "ended", nowMs: number): void {
    this.phase = to;
    this.leftQueueAtMs ??= nowMs;
  }

  begin(): void {
    this.attempts++;
    this.newWords = 0;
    this.lastEnd = null;
  }

  /** An engine has said that many of its words. */
  heard(words: number): void {
    if (words <= this.reached) return;
    this.newWords += words - this.reached;
    this.reached = words;
  }

  /** Its attempt was cut, and it is to go on. */
  lost(): void {
    this.fruitless = this.newWords > 0 ? 0 : this.fruitless + 1;
    this.losses = this.newWords >= clearingWords ? 0 : this.losses + 1;
  }

  /** The daemon itself cut it: that says nothing of the task. */
  letGo(): void {
    if (this.newWords > 0) this.fruitless = 0;
  }

  /** Because it asked for that, or because engines were lost under it time and again. */
  get alone(): boolean {
    return this.seen.strict || this.losses >= sharedLosses;
  }

  /**
   * Its turn is not seen in the order of turns: where all was said no engine is asked again, and a greedy one's prompt
   * is made into tokens first.
   */
  get startsUnseen(): boolean {
    return this.reached > 0 && (this.seen.greedy || this.reached === this.seen.tokens);
  }

  /** It goes on with its own words, from the first one or behind the last one. */
  judgeAsked({ position, upTo, verbatim }: Asked): void {
    const at = `task ${this.nth} was to go on behind ${position} words`;
    if (!verbatim) this.violation(`${at} that are not its own`);
    if (position > this.reached) this.violation(`${at} of the ${this.reached} that were said`);
    if (upTo !== this.seen.tokens) this.violation(`${at} up to ${upTo} of ${this.seen.tokens}`);
  }

  /** It waited before this instant, and nothing that may end it has happened. */
  certainlyWaits(nowMs: number): boolean {
    const { deadlineMs, atMs, tokens } = this.seen;
    return (
      this.accepted &&
      this.phase === "waiting" &&
      this.waitsSinceMs < nowMs &&
      this.cancelAtMs === null &&
      (deadlineMs === null || atMs + deadlineMs - earlyMs(tokens) > nowMs)
    );
  }

  /** The daemon was started again and knows so many of its words: it waits to go on, and its log is read anew. */
  waitAgain(nowMs: number, words: number, seen: boolean): void {
    if (words < this.tokens)
      this.violation(`task ${this.nth} lost words that were seen: ${words} of ${this.tokens}`);
    this.wait(nowMs);
    this.accepted = true;
    this.cutAtMs = seen ? (this.cutAtMs ?? nowMs) : null;
    this.recovered = true;
    this.passedSinceMs = null;
    this.viewers = 0;
    this.lastLeftAtMs = null;
    this.reached = words;
    this.fruitless = 0;
    this.losses = 0;
    this.preempted = 0;
    this.drainCut = false;
    this.newWords = 0;
    this.lastEnd = null;
    if (this.text.length > this.told.length) this.told = this.text;
    this.text = "";
    this.frames = 0;
    this.tokens = 0;
    this.started = false;
  }

  read(text: string): void {
    this.text += text;
    const { length } = this.text;
    if (!(length < this.told.length ? this.told.startsWith(this.text) : this.text.startsWith(this.told)))
      this.violation(`task ${this.nth} tells something else than before the restart`);
    for (const block of text.split("\n\n")) if (block !== "") this.readFrame(block);
  }

  private readFrame(block: string): void {
    const [idLine, eventLine, dataLine] = block.split("\n");
    const event = eventLine?.replace("event: ", "") ?? "";
    const data: Record<string, unknown> = JSON.parse(dataLine?.replace("data: ", "") ?? "null");
    const at = `task ${this.nth}, frame ${this.frames}`;
    if (this.terminal !== null) this.violation(`${at}: ${event} after the ${this.terminal.event}`);
    if (idLine !== `id: ${this.frames}`) this.violation(`${at} has ${idLine}`);
    this.frames++;
    switch (event) {
      case "started":
        if (this.started || this.tokens > 0) this.violation(`${at}: started again`);
        if (this.attempts === 0) this.violation(`${at}: started before an engine worked for it`);
        this.started = true;
        break;
      case "token":
        if (!this.started) this.violation(`${at}: a token before started`);
        if (data.i !== this.tokens) this.violation(`${at}: i is ${data.i} and not ${this.tokens}`);
        if (data.t !== wordOf(this.seen.taskId, this.tokens))
          this.violation(`${at}: ${data.t} is not the word that comes there`);
        this.tokens++;
        break;
      case "metrics":
        if (this.tokens === 0) this.violation(`${at}: metrics before the first token`);
        break;
      case "end":
        this.terminal = { event, code: "" };
        if (data.tokens_out !== this.tokens)
          this.violation(`${at}: tokens_out ${data.tokens_out} of ${this.tokens}`);
        if (data.finish_reason !== "length") this.violation(`${at}: finish_reason ${data.finish_reason}`);
        break;
      case "error":
        this.terminal = { event, code: String(data.code) };
        break;
      default:
        this.violation(`${at}: there is no event ${event}`);
    }
  }

  /**
   * Another viewer reads a part of the log in order. One that was behind may miss metrics, all of them but the newest;
   * only a cancel lets it jump, to the last frame.
   */
  judgeViewer(from: number, text: string, closed: boolean): void {
    const blocks = (all: string) =>
      all.split("\n\n").filter((block) => block !== "" && !block.startsWith(":"));
    const all = blocks(this.text);
    const read = blocks(text);
    const jumped = this.terminal?.code === "CANCELED" && read.length > 0 && read.at(-1) === all.at(-1);
    const inOrder = jumped ? read.slice(0, -1) : read;
    let at = from;
    for (const block of inOrder) {
      while (all[at] !== block && all[at]?.includes("\nevent: metrics\n") === true) at++;
      if (all[at++] === block) continue;
      this.violation(`a viewer of task ${this.nth} read something else than its log`);
      break;
    }
    if (closed && from < all.length && read.at(-1) !== all.at(-1))
      this.violation(`a stream of task ${this.nth} was closed before its end`);
  }

  /** Was this a reason to end the task so? */
  judgeEnd(nowMs: number, engineServes: boolean, rules: EndRules): void {
    const { terminal, lastEnd } = this;
    if (terminal === null) return;
    const { code } = terminal;
    const why = (holds: boolean, otherwise: string) => {
      if (!holds) this.violation(`task ${this.nth} ended with ${code || "end"}, but ${otherwise}`);
    };
    if (terminal.event === "end") {
      // Where all was said, only the engine's last word may have been lost.
      why(lastEnd === "finished" || this.reached === this.seen.tokens, "its engine had not finished");
      why(this.tokens === this.seen.tokens, `${this.tokens} of ${this.seen.tokens} tokens had come`);
      return;
    }
    why(lastEnd !== "finished" || this.cancelAtMs !== null || rules.cutAtDeadline, "its engine had finished");
    const { deadlineMs, atMs } = this.seen;
    const lastChance = this.fruitless >= rules.attemptsMax;
    switch (code) {
      case "CANCELED":
        why(this.cancelAtMs !== null, "nobody had asked for it");
        break;
      case "DEADLINE_UNMET":
        why(
          deadlineMs !== null && nowMs >= atMs + deadlineMs - earlyMs(this.seen.tokens),
          `its deadline was ${Math.round(atMs + (deadlineMs ?? 0) - nowMs)} ms away`,
        );
        if (rules.cutAtDeadline && nowMs >= atMs + (deadlineMs ?? 0) - 0.001) break;
        why(this.tokens === 0, "it had sent something");
        why(this.phase !== "running", "it ran");
        break;
      case "QUEUE_FULL_DROP_LRU":
        why(this.phase === "waiting", "it did not wait");
        break;
      case "POOL_UNAVAILABLE":
        why(!engineServes, "an engine of its pool served");
        break;
      case "INVALID_PARAMS":
        why(lastEnd === "refused", "no engine had refused it");
        break;
      case "DECODE_TIMEOUT":
        why(lastEnd === "aborted" && lastChance, "no watchdog had cut its last chance");
        break;
      case "WORKER_RESET":
        why(lastChance, "its engine had not broken off its last chance");
        break;
      default:
        why(false, "no such code belongs here");
    }
  }
}
