/** What app/bootstrap.ts has built and has to let go of again. */
import type { Log } from "../ports/telemetry.ts";

/** Releases in reverse order of building, every one even when another fails. */
export class Releases {
  private readonly steps: { name: string; release: () => void | Promise<void> }[] = [];

  add(name: string, release: () => void | Promise<void>): void {
    this.steps.push({ name, release });
  }

  async run(log: Log): Promise<void> {
    for (const { name, release } of this.steps.splice(0).reverse()) {
      try {
        await release();
      } catch (error) {
        log.error("release_failed", { human: `${name} could not be closed cleanly` }, error);
      }
    }
  }
}
