/**
 * A run folder for tests with real processes, and the pids they learn of: whatever a test did, afterwards its folder
 * is gone, what still runs is ended, and a test that left something running fails.
 */
import { afterEach, beforeEach, expect } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BunProcessHost } from "../../src/infra/bun-process.ts";
import { RecordingLog } from "./fakes-supervisor.ts";
import { endIfRunning, isRunning } from "./process-probe.ts";
import { waitFor } from "./wait.ts";

export class ProcessFolder {
  path = "";
  readonly pids: number[] = [];
  private hosts: BunProcessHost[] = [];

  /** Closed after the test. */
  host(): BunProcessHost {
    const host = new BunProcessHost({ runDir: this.path, guardCommand: null, log: new RecordingLog() });
    this.hosts.push(host);
    return host;
  }

  /** As a daemon does it that starts now. @returns how many children it ended. */
  sweep(): Promise<number> {
    return this.host().sweep();
  }

  /** The pid that a line `NAME PID` tells. */
  async told(lines: readonly string[], name: string): Promise<number> {
    const line = await waitFor(
      () => lines.find((candidate) => candidate.startsWith(`${name} `)),
      5_000,
      name,
    );
    const pid = Number(line.split(" ")[1]);
    this.pids.push(pid);
    return pid;
  }

  open(): void {
    this.path = mkdtempSync(join(tmpdir(), "orchd-process-"));
  }

  async close(): Promise<void> {
    for (const host of this.hosts.splice(0)) await host.close();
    const left = this.pids.splice(0).filter(isRunning);
    for (const pid of left) endIfRunning(pid);
    rmSync(this.path, { recursive: true, force: true });
    expect(left).toEqual([]);
  }
}

/** One for each test of the file that asks. */
export function useProcessFolder(): ProcessFolder {
  const folder = new ProcessFolder();
  beforeEach(() => folder.open());
  afterEach(() => folder.close());
  return folder;
}
