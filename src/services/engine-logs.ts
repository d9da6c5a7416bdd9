/**
 * Use case "see what an engine says": the last lines of the logs of a pool's replicas, and one of them followed line
 * by line. api/engine-logs.ts answers with it, to admins only: an engine may log paths and pieces of prompts.
 *
 * Always: credentials in well-known forms are taken out of every line; a follower is a number in the replica's bounded
 * log, so one that reads slowly costs nothing and is told how many lines it missed.
 */
import { closest } from "fastest-levenshtein";
import { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import { heartbeatFrame, retryFrame } from "../domain/sse.ts";
import type { Clock } from "../ports/clock.ts";
import type { ReplicaControl } from "../ports/supervision.ts";
import type { Pools } from "./pools.ts";
import type { ByteSink, StreamPlace } from "./streams.ts";

/** Numbered lines from 0 on, of which the last ones are kept. */
export interface EngineLog {
  /** The number of the next line. */
  readonly length: number;
  read(from: number, linesMax: number): { readonly first: number; readonly lines: readonly string[] };
  /** Returns what ends it. */
  watch(onLine: () => void): () => void;
}

export interface EngineLogsDeps {
  readonly clock: Clock;
  readonly pools: Pick<Pools, "get">;
  readonly control: Pick<ReplicaControl, "snapshots"> & { logOf(replicaId: string): EngineLog };
  /** The text without credentials. */
  readonly scrub: (text: string) => string;
  /** As they are now. */
  readonly rules: { readonly heartbeatMs: number };
}

export interface ReplicaLog {
  readonly replicaId: string;
  /** The number of the first of these lines. */
  readonly first: number;
  readonly lines: readonly string[];
}

/** One open follower, for whoever owns its connection. */
export interface LogFollower {
  /** Hands lines over until the follower leaves or the daemon stops. Once. */
  pump(sink: ByteSink): Promise<void>;
  /** Its connection is gone. Idempotent. */
  leave(): void;
}

const utf8 = new TextEncoder();
const heartbeat = utf8.encode(heartbeatFrame);
const retry = utf8.encode(retryFrame);

export class EngineLogs {
  private readonly followers = new Set<Follower>();

  constructor(private readonly deps: EngineLogsDeps) {}

  /** Of all replicas, or of one. Throws NOT_FOUND. */
  tail(poolId: string, replicaId: string | null, linesMax: number): ReplicaLog[] {
    return this.replicasOf(poolId, replicaId).map((id) => {
      const log = this.deps.control.logOf(id);
      const { first, lines } = log.read(Math.max(0, log.length - linesMax), linesMax);
      return { replicaId: id, first, lines: lines.map(this.deps.scrub) };
    });
  }

  /**
   * From the line behind number `after`; null: from the last `linesMax`. Throws NOT_FOUND, and INVALID_PARAMS where
   * the pool has several replicas and none is named.
   */
  follow(
    poolId: string,
    replicaId: string | null,
    linesMax: number,
    after: number | null,
    place: StreamPlace,
  ): LogFollower {
    const [id, ...others] = this.replicasOf(poolId, replicaId);
    if (id === undefined || others.length > 0)
      throw new OrchestratorError(
        "INVALID_PARAMS",
        `pool "${poolId}" has several replicas: name one with replica`,
        {
          poolId,
          details: { field: "replica" },
        },
      );
    const log = this.deps.control.logOf(id);
    const tail = Math.max(0, log.length - linesMax);
    // A number that is not there yet is of an earlier run of the daemon.
    const from = after === null || after >= log.length ? tail : after + 1;
    const ended = () => {
      this.followers.delete(follower);
      place.release();
    };
    const follower: Follower = new Follower(log, from, this.deps, ended);
    this.followers.add(follower);
    return follower;
  }

  /** The daemon stops: each ends after the hint that makes a client come back. */
  close(): void {
    for (const follower of this.followers) follower.close();
  }

  private replicasOf(poolId: string, replicaId: string | null): string[] {
    this.deps.pools.get(poolId);
    const ids = this.deps.control.snapshots(poolId).map((replica) => replica.replicaId);
    if (replicaId === null) return ids;
    if (ids.includes(replicaId)) return [replicaId];
    const hint = ids.length === 0 ? "it has none" : `the nearest one is "${closest(replicaId, ids)}"`;
    throw new OrchestratorError("NOT_FOUND", `pool "${poolId}" has no replica "${replicaId}": ${hint}`, {
      poolId,
    });
  }
}

class Follower implements LogFollower {
  private open = true;
  private closing = false;
  /** What ends the wait for the next line. */
  private wake: (() => void) | null = null;

  constructor(
    private readonly log: EngineLog,
    private next: number,
    private readonly deps: Pick<EngineLogsDeps, "clock" | "scrub" | "rules">,
    private readonly ended: () => void,
  ) {}

  async pump(sink: ByteSink): Promise<void> {
    // The head of a response is held back until its first chunk: a quiet engine must not look like no answer.
    let bytes = this.take() ?? heartbeat;
    while (this.open) {
      await sink.write(bytes);
      sink.flush();
      if (this.closing) break;
      bytes = this.take() ?? (await this.waited());
    }
    if (!this.open) return;
    sink.write(retry);
    sink.flush();
    sink.close();
    this.leave();
  }

  leave(): void {
    if (!this.open) return;
    this.open = false;
    this.wake?.();
    this.ended();
  }

  close(): void {
    this.closing = true;
    this.wake?.();
  }

  /** What there is, in one piece; null: nothing new. */
  private take(): Uint8Array | null {
    const { first, lines } = this.log.read(this.next, limits.engineLogChunkLines);
    const missed = first - this.next;
    if (missed === 0 && lines.length === 0) return null;
    let frames = missed === 0 ? "" : `event: gap\ndata: ${JSON.stringify({ missed })}\n\n`;
    for (const [at, line] of lines.entries()) {
      const text = this.deps.scrub(line);
      frames += `id: ${first + at}\nevent: line\ndata: ${JSON.stringify({ n: first + at, text })}\n\n`;
    }
    this.next = first + lines.length;
    return utf8.encode(frames);
  }

  /** The next lines, or a heartbeat when it is time for one or the wait was ended. */
  private async waited(): Promise<Uint8Array> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.wake = resolve;
    const unwatch = this.log.watch(resolve);
    const timer = this.deps.clock.setTimer(this.deps.rules.heartbeatMs, resolve);
    await promise;
    timer.cancel();
    unwatch();
    this.wake = null;
    return this.take() ?? heartbeat;
  }
}
