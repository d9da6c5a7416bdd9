/**
 * HOT. Viewers of event logs: each one a byte stream over its own cursor. Each step takes everything since the
 * cursor and waits for the socket where that is full, so a slow viewer batches by itself, costs bounded memory
 * and never slows the engine; when it has room again, it is not sent metrics that are out of date.
 *
 * Called by the API for every stream. Always holds: a viewer that left is forgotten; when the last viewer that
 * counts leaves a live task with on_disconnect=cancel, the task is canceled after the grace unless one returns.
 * One timer beats for all idle viewers; with micro-batching each viewer has one more while something waits for it.
 */
import { assert } from "../domain/assert.ts";
import { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import { heartbeatFrame, retryFrame } from "../domain/sse.ts";
import { isTerminal } from "../domain/task.ts";
import type { Clock, Timer } from "../ports/clock.ts";
import type { Cursor } from "./event-log.ts";
import type { TaskRecord } from "./task-registry.ts";
import type { CancelReason } from "./terminal-events.ts";

export interface StreamsOptions {
  readonly heartbeatMs: number;
  readonly disconnectGraceMs: number;
  /** How long after its last write a viewer waits before it is sent more; 0: not at all. */
  readonly microbatchMs: number;
  readonly streamsPerKeyMax: number;
}

/** One of the streams that a key may have open; given back once, by the stream's end or by who opened none. */
export interface StreamPlace {
  readonly release: () => void;
}

/** Where a viewer's bytes go: the controller of Bun's direct stream, or what a test puts in its place. */
export interface ByteSink {
  /** A promise: no more fits now, it settles when there is room again. */
  write(bytes: Uint8Array): number | Promise<number>;
  flush(): unknown;
  close(): void;
}

/** One open viewer, for whoever owns its connection. */
export interface ViewerStream {
  /** Hands the events over until the terminal one, which closes the sink, or until the viewer left. Once. */
  pump(sink: ByteSink): Promise<void>;
  /** Its connection is gone. Idempotent. */
  leave(): void;
}

interface Viewer {
  readonly record: TaskRecord;
  readonly place: StreamPlace;
  readonly counts: boolean;
  readonly cursor: Cursor;
  /** Something was sent since the last beat. */
  active: boolean;
  beatDue: boolean;
  /** With micro-batching: when it was last sent something, on the monotonic clock. */
  sentMs: number;
  open: boolean;
}

const heartbeat = new TextEncoder().encode(heartbeatFrame);
const retry = new TextEncoder().encode(retryFrame);
/** `started` has the number 0, the first token is next: neither waits for others. */
const promptFrames = 2;

export class Streams {
  private readonly viewers = new Set<Viewer>();
  private readonly perKey = new Map<string, number>();
  private readonly graces = new Map<string, Timer>();
  private beat: Timer | null = null;
  private suspended = false;

  constructor(
    private readonly clock: Clock,
    private readonly options: StreamsOptions,
    private readonly cancel: (taskId: string, reason: CancelReason) => void,
    private readonly noteWatched: (taskId: string) => void,
  ) {
    assert(options.microbatchMs <= limits.microbatchMsMax, "what waits is sent within the bound");
  }

  get size(): number {
    return this.viewers.size;
  }

  /** Throws RATE_LIMITED when the key has as many open streams as it may. */
  assertRoom(keyId: string): void {
    if ((this.perKey.get(keyId) ?? 0) < this.options.streamsPerKeyMax) return;
    throw new OrchestratorError(
      "RATE_LIMITED",
      `this key has ${this.options.streamsPerKeyMax} streams open (limits.streams_per_key): close one first`,
      { policyLabel: "streams", retryAfterMs: limits.streamsRetryMs },
    );
  }

  /** The same, and the place is taken: who submits a task for a stream must be sure of it before the task is. */
  reserve(keyId: string): StreamPlace {
    this.assertRoom(keyId);
    this.perKey.set(keyId, (this.perKey.get(keyId) ?? 0) + 1);
    let taken = true;
    const release = (): void => {
      if (!taken) return;
      taken = false;
      const left = (this.perKey.get(keyId) ?? 1) - 1;
      if (left === 0) this.perKey.delete(keyId);
      else this.perKey.set(keyId, left);
    };
    return { release };
  }

  /**
   * A stream of the events after `afterSeq` (-1: all), ending with the terminal one. `observe`: the viewer does
   * not count for on_disconnect. Throws as `reserve` where no place was.
   */
  open(
    record: TaskRecord,
    keyId: string,
    afterSeq: number,
    observe: boolean,
    place: StreamPlace = this.reserve(keyId),
  ): ViewerStream {
    const viewer: Viewer = {
      record,
      place,
      counts: !observe,
      cursor: record.log.open(afterSeq),
      active: false,
      // Bun holds the head of a response back until its first chunk: where there is no event yet, a comment
      // takes it out, and the client learns at once that it is connected, and to which task.
      beatDue: true,
      sentMs: Number.NEGATIVE_INFINITY,
      open: true,
    };
    this.viewers.add(viewer);
    if (viewer.counts) this.arrived(record);
    this.armBeat();
    return {
      pump: (sink) => this.pump(viewer, sink),
      leave: () => this.leave(viewer),
    };
  }

  /**
   * The daemon stops: streams of live tasks end without a terminal event, after the hint that makes a client come
   * back with Last-Event-ID; nobody's leaving counts any more.
   */
  suspend(): void {
    this.suspended = true;
    for (const viewer of this.viewers) viewer.cursor.wake();
  }

  /** A task of an earlier process: where it had viewers, they have the grace to come back. */
  expect(record: TaskRecord): void {
    if (record.watched && record.watchers === 0) this.armGrace(record);
  }

  close(): void {
    this.beat?.cancel();
    this.beat = null;
    for (const timer of this.graces.values()) timer.cancel();
    this.graces.clear();
  }

  /**
   * Until the log is sealed and all of it handed over, or the viewer left. One callback for the viewer's whole life: a
   * loop that awaits makes a promise and resumes a function for every token.
   */
  private pump(viewer: Viewer, sink: ByteSink): Promise<void> {
    return new Promise((resolve, reject) => {
      const step = (): void => {
        try {
          const full = this.handOver(viewer, sink);
          if (full !== null) full.then(hasRoom, reject);
          else if (viewer.open) viewer.cursor.next(woken);
          else resolve();
        } catch (error) {
          reject(error);
        }
      };
      const hasRoom = (): void => {
        viewer.cursor.fellBehind();
        step();
      };
      const woken = this.options.microbatchMs > 0 ? () => this.collect(viewer, step) : step;
      step();
    });
  }

  /** All that is there. A promise: the socket is full, and nothing more is taken before the client has read. */
  private handOver(viewer: Viewer, sink: ByteSink): Promise<number> | null {
    while (viewer.open) {
      const beat = viewer.beatDue && !viewer.cursor.done ? heartbeat : null;
      const bytes = viewer.cursor.take() ?? beat;
      if (this.suspended && !viewer.record.log.sealed) {
        this.leave(viewer);
        sink.write(retry);
        sink.flush();
        sink.close();
      } else if (bytes !== null) {
        viewer.active = bytes !== heartbeat;
        if (viewer.active && this.options.microbatchMs > 0) viewer.sentMs = this.clock.nowMs();
        viewer.beatDue = false;
        const written = sink.write(bytes);
        sink.flush();
        if (typeof written === "object") return written;
      } else if (viewer.cursor.done) {
        this.leave(viewer);
        sink.close();
      } else break;
    }
    return null;
  }

  /** What has come waits for what comes soon after it; the end of the log, or of the daemon, ends the wait. */
  private collect({ cursor, record, open, sentMs }: Viewer, step: () => void): void {
    const collects =
      open && !this.suspended && !record.log.sealed && cursor.ready && cursor.place >= promptFrames;
    const leftMs = collects ? sentMs + this.options.microbatchMs - this.clock.nowMs() : 0;
    if (leftMs <= 0) {
      step();
      return;
    }
    const timer = this.clock.setTimer(leftMs, () => cursor.wake());
    cursor.pause(() => {
      timer.cancel();
      step();
    });
  }

  private leave(viewer: Viewer): void {
    if (!viewer.open) return;
    viewer.open = false;
    viewer.cursor.close();
    this.viewers.delete(viewer);
    viewer.place.release();
    if (viewer.counts) this.departed(viewer.record);
    if (this.viewers.size === 0) {
      this.beat?.cancel();
      this.beat = null;
    }
  }

  private arrived(record: TaskRecord): void {
    record.watchers++;
    if (!record.watched) {
      record.watched = true;
      this.noteWatched(record.spec.taskId);
    }
    this.graces.get(record.spec.taskId)?.cancel();
    this.graces.delete(record.spec.taskId);
  }

  private departed(record: TaskRecord): void {
    record.watchers--;
    if (record.watchers === 0) this.armGrace(record);
  }

  private armGrace(record: TaskRecord): void {
    const { taskId, onDisconnect } = record.spec;
    if (this.suspended || onDisconnect === "continue" || isTerminal(record.state)) return;
    const timer = this.clock.setTimer(this.options.disconnectGraceMs, () => {
      this.graces.delete(taskId);
      if (!isTerminal(record.state)) this.cancel(taskId, "disconnect");
    });
    this.graces.set(taskId, timer);
  }

  private armBeat(): void {
    if (this.beat !== null) return;
    this.beat = this.clock.setTimer(this.options.heartbeatMs, () => {
      this.beat = null;
      for (const viewer of this.viewers) {
        if (!viewer.active && viewer.cursor.idle) {
          viewer.beatDue = true;
          viewer.cursor.wake();
        }
        viewer.active = false;
      }
      if (this.viewers.size > 0) this.armBeat();
    });
  }
}
