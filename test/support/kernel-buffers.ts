/** What the kernel holds of one connection between two sockets on this machine's 127.0.0.1. */
import { readFileSync } from "node:fs";

export interface HeldByKernel {
  /** The server's side: written and not taken over by the client's, bytes. */
  readonly unsent: number;
  /** The client's side: there and not read, bytes. */
  readonly unread: number;
}

export function heldByKernel(serverPort: number, clientPort: number): HeldByKernel {
  const hex = (port: number): string => `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  const rows = readFileSync("/proc/self/net/tcp", "latin1")
    .split("\n")
    .map((line) => line.trim().split(/\s+/));
  const queues = (from: number, to: number): number[] => {
    const row = rows.find(([, local, remote]) => local?.endsWith(hex(from)) && remote?.endsWith(hex(to)));
    if (row === undefined) throw new Error(`there is no connection from port ${from} to ${to}`);
    return (row[4] ?? "").split(":").map((count) => Number.parseInt(count, 16));
  };
  const [unsent = Number.NaN] = queues(serverPort, clientPort);
  const [, unread = Number.NaN] = queues(clientPort, serverPort);
  return { unsent, unread };
}
