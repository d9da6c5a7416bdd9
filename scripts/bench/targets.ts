/** What the bench's client asks: the daemon, or the engine without it. Both sides of a comparison read the same bytes. */
import type { Target } from "./http-client.ts";
import type { Daemon, Running } from "./processes.ts";

/** One side of a comparison. */
export interface Side {
  readonly target: Target;
  readonly body: (n: number, tokens: number) => string;
}

export const daemonTarget = (
  { host, port, key }: Daemon,
  path = "/v1/tasks",
  accept = "text/event-stream",
): Target => ({
  host,
  port,
  path,
  headers: { "X-API-Key": key, Accept: accept },
  firstToken: "event: token",
  lastEvent: "event: end",
  keepAlive: true,
});

export const engineTarget = ({ host, port }: Running): Target => ({
  host,
  port,
  path: "/completion",
  headers: {},
  firstToken: '"content":"',
  lastEvent: '"stop":true',
  keepAlive: false,
});
