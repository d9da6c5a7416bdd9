/**
 * Compiles test/infra/fixtures/nvml-stand-in.c and moves its cards. `describe` what there is, then let the code under
 * test load `path`: both hold the same library.
 */
import { dlopen, FFIType } from "bun:ffi";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const source = resolve(import.meta.dir, "../infra/fixtures/nvml-stand-in.c");
const { u32, u64, i32 } = FFIType;

/** In the order of the stand-in's enum. */
const calls = [
  "init",
  "count",
  "handle",
  "name",
  "utilization",
  "memory",
  "power",
  "temperature",
  "ecc",
  "processes",
] as const;
type Call = (typeof calls)[number];

export interface StandInCard {
  readonly percent: number;
  readonly total: number;
  readonly reserved: number;
  readonly used: number;
  readonly milliwatts: number;
  readonly celsius: number;
}

export class NvmlStandIn {
  readonly #folder = mkdtempSync(join(tmpdir(), "orchd-nvml-"));
  readonly path = join(this.#folder, "libnvidia-ml.so.1");
  readonly #library;

  /** `generation`: which driver it plays, see the source. */
  constructor(generation: 1 | 2 | 3 | 32 = 3) {
    const built = Bun.spawnSync([
      "cc",
      "-shared",
      "-fPIC",
      "-w",
      `-DGENERATION=${generation}`,
      "-o",
      this.path,
      source,
    ]);
    if (built.exitCode !== 0) throw new Error(`cc: ${built.stderr.toString()}`);
    this.#library = dlopen(this.path, {
      stand_in_reset: { args: [u32] },
      stand_in_card: { args: [u32, u32, u64, u64, u64, u32, u32] },
      stand_in_ecc: { args: [u32, u64, u64] },
      stand_in_process: { args: [u32, u32, u64] },
      stand_in_answer: { args: [u32, u32, i32] },
      stand_in_answer_all: { args: [u32, i32] },
      stand_in_order: { args: [u32, u32, u32] },
      stand_in_open: { returns: i32 },
      stand_in_starts: { returns: i32 },
      stand_in_calls: { returns: i32 },
    });
    this.reset();
  }

  /** No processes, no faults. */
  reset(...cards: readonly StandInCard[]): void {
    const { symbols } = this.#library;
    symbols.stand_in_reset(cards.length);
    for (const [at, { percent, total, reserved, used, milliwatts, celsius }] of cards.entries())
      symbols.stand_in_card(at, percent, BigInt(total), BigInt(reserved), BigInt(used), milliwatts, celsius);
  }

  ecc(card: number, corrected: number, uncorrected: number): void {
    this.#library.symbols.stand_in_ecc(card, BigInt(corrected), BigInt(uncorrected));
  }

  /** `used` null: the driver does not tell it. */
  process(card: number, pid: number, used: number | null): void {
    this.#library.symbols.stand_in_process(card, pid, used === null ? 0xffff_ffff_ffff_ffffn : BigInt(used));
  }

  answers(call: Call, answer: number, card: number | null = null): void {
    const { symbols } = this.#library;
    if (card === null) symbols.stand_in_answer_all(calls.indexOf(call), answer);
    else symbols.stand_in_answer(card, calls.indexOf(call), answer);
  }

  /** Which cards are counted from the next start on. */
  counts(...cards: readonly [number] | readonly [number, number]): void {
    this.#library.symbols.stand_in_order(cards.length, cards[0], cards[1] ?? 0);
  }

  /** Starts that were not ended. */
  get open(): number {
    return this.#library.symbols.stand_in_open();
  }
  get starts(): number {
    return this.#library.symbols.stand_in_starts();
  }
  /** Questions about a card. */
  get calls(): number {
    return this.#library.symbols.stand_in_calls();
  }

  remove(): void {
    this.#library.close();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
