/**
 * What the kernel keeps for a client that does not read. bootstrap.ts asks for it when the server listens.
 *
 * The runtime stops at the first write that does not fit, and what fits is up to 4 MB (net.ipv4.tcp_wmem): memory of
 * the machine for each stalled viewer, and frames that a cancel cannot take back any more. TCP_NOTSENT_LOWAT bounds
 * what is not sent yet; what is under way is bounded by the client's own buffer. Connections inherit it from the
 * socket that they come in on, and the runtime has no option for it.
 */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import type { Log } from "../ports/telemetry.ts";

/** Linux, netinet/tcp.h and linux/tcp.h. */
const ipprotoTcp = 6;
const tcpNotsentLowat = 25;
const stateListen = "0A";

/** Never fails: without it the kernel's own bound holds, and the log says so. `bytes`: unsent, per connection. */
export async function boundUnsent(port: number, bytes: number, log: Log): Promise<void> {
  try {
    const fds = listeningOn(port);
    if (fds.length === 0) throw new Error(`no socket of this process listens on port ${port}`);
    const { dlopen, FFIType, ptr } = await import("bun:ffi");
    const { i32, u32 } = FFIType;
    const { symbols, close } = dlopen("libc.so.6", {
      setsockopt: { args: [i32, i32, i32, FFIType.ptr, u32], returns: i32 },
    });
    const value = new Int32Array([bytes]);
    const refused = fds.filter(
      (fd) => symbols.setsockopt(fd, ipprotoTcp, tcpNotsentLowat, ptr(value), value.byteLength) !== 0,
    );
    close();
    if (refused.length > 0) throw new Error("setsockopt was refused");
  } catch (error) {
    log.info("send_buffers_unbounded", {
      human: `a client that does not read may keep as much of the kernel's memory as net.ipv4.tcp_wmem says: ${String(error)}`,
    });
  }
}

/** This process's sockets that listen on a TCP port, as file descriptors. */
function listeningOn(port: number): number[] {
  const inodes = ["/proc/self/net/tcp", "/proc/self/net/tcp6"].flatMap((table) =>
    listeningInodes(table, port),
  );
  const links = new Set(inodes.map((inode) => `socket:[${inode}]`));
  return readdirSync("/proc/self/fd")
    .filter((fd) => links.has(linkOf(fd)))
    .map(Number);
}

/** Columns: number, local address:port in hexadecimal, remote, state, queues, timer, retransmits, uid, timeout, inode. */
function listeningInodes(table: string, port: number): string[] {
  const ending = `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  const rows = readTable(table).map((line) => line.trim().split(/\s+/));
  return rows
    .filter(([, local, , state]) => local?.endsWith(ending) === true && state === stateListen)
    .map((row) => row[9] ?? "");
}

function readTable(table: string): string[] {
  try {
    return readFileSync(table, "latin1").split("\n").slice(1);
  } catch {
    // A machine without IPv6 has no table of it; that nothing was found is told by the caller.
    return [];
  }
}

function linkOf(fd: string): string {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    // Closed since the folder was read, such as the one that read it.
    return "";
  }
}
