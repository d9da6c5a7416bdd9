/** When a change of the configuration file is told: once it stays the same, at most once, and also where nobody gives a sign. */
import { describe, expect, test } from "bun:test";
import { ConfigWatch } from "../../src/app/config-watch.ts";
import { limits } from "../../src/domain/limits.ts";
import type { FileWatch, Watched } from "../../src/ports/file-watch.ts";
import { VirtualClock } from "../support/virtual-clock.ts";

/** What lies there, as the test says. */
class ShownFiles implements FileWatch {
  content = "first";
  stir: () => void = () => undefined;
  readonly followed: (Watched | null)[] = [];
  follow(watched: Watched, stirred: () => void) {
    this.followed.push(watched);
    this.stir = stirred;
    return {
      print: () => this.content,
      close: () => {
        this.followed.push(null);
        this.stir = () => undefined;
      },
    };
  }
}

function watching() {
  const clock = new VirtualClock();
  const files = new ShownFiles();
  const told: string[] = [];
  const watch = new ConfigWatch(clock, files, () => told.push(files.content));
  const at: Watched = { file: "/etc/config.yaml", modelsDir: null };
  watch.follow(at);
  const write = (content: string): void => {
    files.content = content;
    files.stir();
  };
  return { clock, files, told, watch, write, at };
}

describe("a change", () => {
  test("is told once, when it has stayed the same", async () => {
    const { clock, told, write, watch, files } = watching();
    write("half");
    await clock.advance(limits.configQuietMs - 1);
    expect(told).toEqual([]);
    write("whole");
    await clock.advance(2 * limits.configQuietMs);
    expect(told).toEqual(["whole"]);
    for (let n = 0; n < 20; n++) {
      // Others write there all the time.
      files.stir();
      await clock.advance(100);
    }
    expect(told).toEqual(["whole"]);
    watch.stop();
  });

  test("that never stays the same is told all the same, in a bounded time", async () => {
    const { clock, told, write, watch } = watching();
    for (let n = 0; n * 100 <= limits.configSettleMsMax; n++) {
      write(`version ${n}`);
      await clock.advance(100);
    }
    expect(told).toHaveLength(1);
    watch.stop();
  });

  test("that nobody gives a sign of is found", async () => {
    const { clock, told, files, watch } = watching();
    files.content = "silently";
    await clock.advance(limits.configLookMs + 3 * limits.configQuietMs);
    expect(told).toEqual(["silently"]);
    await clock.advance(10 * limits.configLookMs);
    expect(told).toHaveLength(1);
    watch.stop();
  });

  test("that was read already, or undone, is not told", async () => {
    const { clock, told, write, watch } = watching();
    write("second");
    watch.saw();
    await clock.advance(5_000);
    write("third");
    await clock.advance(100);
    write("second");
    await clock.advance(5_000);
    expect(told).toEqual([]);
    watch.stop();
  });
});

test("nothing is told of what is not watched any more, and no timer is left", async () => {
  const { clock, files, told, write, watch, at } = watching();
  watch.follow({ ...at });
  expect(files.followed).toEqual([at]);
  write("second");
  const other = { file: "/etc/config.yaml", modelsDir: "/models" };
  watch.follow(other);
  expect(files.followed).toEqual([at, null, other]);
  await clock.advance(5_000);
  expect(told).toEqual([]);
  write("third");
  watch.follow(null);
  await clock.advance(60_000);
  expect(told).toEqual([]);
  expect(clock.pendingTimers).toBe(0);
});
