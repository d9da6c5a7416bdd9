/** What the daemon takes of memory and what its journal takes of the disk, over the run of reloads. Called by run.ts. */
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { rssBytes } from "../bench/processes.ts";
import { median } from "../bench/statistics.ts";

interface Series {
  readonly second_quarter_mib: number;
  readonly last_quarter_mib: number;
  readonly most_mib: number;
}

export interface FootprintFigures {
  readonly looks: number;
  readonly daemon_rss: Series;
  readonly journal: Series;
}

/** Fewer say nothing about growth. */
const looksMin = 40;
/** What a later quarter of the run may have more than an earlier one: an eighth, and noise. */
const growthMax = 1.125;
const noiseMib = 16;

export class Footprint {
  readonly #rss: number[] = [];
  readonly #journal: number[] = [];

  constructor(
    private readonly pid: number,
    private readonly journalFolder: string,
  ) {}

  look(): void {
    this.#rss.push(rssBytes(this.pid));
    let bytes = 0;
    for (const name of readdirSync(this.journalFolder)) {
      // A segment may go in between.
      bytes += statSync(join(this.journalFolder, name), { throwIfNoEntry: false })?.size ?? 0;
    }
    this.#journal.push(bytes);
  }

  figures(fail: (what: string) => void): FootprintFigures {
    const of = (name: string, values: readonly number[]): Series => {
      const mib = values.map((bytes) => bytes / 2 ** 20);
      const quarter = Math.floor(mib.length / 4);
      const second = median(mib.slice(quarter, Math.max(1, 2 * quarter)));
      const last = median(mib.slice(-Math.max(1, quarter)));
      if (mib.length >= looksMin && last > second * growthMax + noiseMib)
        fail(`${name} grew from ${second.toFixed(1)} to ${last.toFixed(1)} MiB`);
      return {
        second_quarter_mib: tenths(second),
        last_quarter_mib: tenths(last),
        most_mib: tenths(Math.max(0, ...mib)),
      };
    };
    return {
      looks: this.#rss.length,
      daemon_rss: of("the memory of the daemon", this.#rss),
      journal: of("the journal", this.#journal),
    };
  }
}

const tenths = (value: number): number => Math.round(value * 10) / 10;
