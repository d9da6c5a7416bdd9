/**
 * A journal whose files were damaged: what is recovered is right as far as it goes, what may be missing is told with
 * file and offset, and no other bytes ever come out.
 */
import { beforeAll, describe, expect, test } from "bun:test";
import { mulberry32 } from "../../scripts/bench/statistics.ts";
import { FileJournal } from "../../src/infra/journal/file-journal.ts";
import { recordAt } from "../../src/infra/journal/record-codec.ts";
import { segmentHeaderBytes } from "../../src/infra/journal/segment.ts";
import { isJournalError, type JournalRecord, type JournalRecovery } from "../../src/ports/journal.ts";
import { type Image, MemoryFiles } from "../support/journal-files.ts";
import { journalRecord, journalToken, plain } from "../support/journal-records.ts";

const corruptions = 10_000;
const tasks = ["a", "b", "c", "d", "e", "f"];
let image: Image;
/** The same journal, written as memory: zeros stand behind the last record of its last segment. */
let mappedImage: Image;
/** What was appended, by task; of `f` what was appended since it began again. */
const written = new Map<string, unknown[]>();
/** Of the past of `f`, which must come back as nothing whole. */
const voided: unknown[] = [];

function write(files: MemoryFiles): Image {
  written.clear();
  voided.length = 0;
  const journal = new FileJournal(files, 1024);
  journal.recover();
  const put = (taskId: string, record: JournalRecord, into = written.get(taskId) ?? []) => {
    journal.append(taskId, record);
    if (into !== voided) written.set(taskId, into);
    into.push(...plain([record]));
  };
  for (let seq = 0; seq < 3; seq++) put("f", journalToken("f", seq), voided);
  for (let seq = 0; seq < 30; seq++) {
    // `e` comes late, `d` rests from the middle on.
    for (const taskId of tasks.slice(0, seq < 15 ? 4 : 3)) put(taskId, journalToken(taskId, seq));
    if (seq === 10) put("f", journalRecord("begin_again", "f", 0));
    if (seq > 20) put("e", journalToken("e", seq - 21));
    if (seq > 10) put("f", journalToken("f", seq - 11, 1));
    journal.flush();
  }
  return files.image;
}

beforeAll(() => {
  mappedImage = write(new MemoryFiles(new Map(), true));
  image = write(new MemoryFiles());
  for (const of of [image, mappedImage]) {
    expect(of.size).toBeGreaterThan(5);
    const found = recover(of);
    expect([...found.damage]).toEqual([]);
    expect(expectHonest(found)).toBe(0);
  }
});

function recover(of: Image): JournalRecovery {
  return new FileJournal(new MemoryFiles(of), 1024).recover();
}
const lastName = (of: Image): string => [...of.keys()].sort().at(-1) ?? "";
/** Where the last byte lies that is not zero. */
const lastUsed = (bytes: Uint8Array): number => bytes.findLastIndex((byte) => byte !== 0);
const changed = (name: string, change: (bytes: Uint8Array) => Uint8Array, of = image): Image =>
  new Map([...of].map(([file, bytes]) => [file, file === name ? change(bytes.slice()) : bytes]));

const startsWith = (whole: readonly unknown[], part: readonly unknown[]): boolean =>
  JSON.stringify(whole.slice(0, part.length)) === JSON.stringify(part);

/** Never other bytes; where nothing is told as damaged, everything. Returns how many tasks are not whole. */
function expectHonest({ tasks: found, damage }: JournalRecovery, mayBeShort = false): number {
  let short = 0;
  for (const taskId of tasks) {
    const log = found.get(taskId);
    const records = plain(log?.records ?? []);
    const model = written.get(taskId) ?? [];
    const right = startsWith(model, records) || (taskId === "f" && startsWith(voided, records));
    if (!right) throw new Error(`other bytes for ${taskId}: ${JSON.stringify(records)}`);
    if (log?.damaged === false && (records.length === model.length || mayBeShort)) continue;
    short++;
    if (damage.length === 0 || log?.damaged === false)
      throw new Error(`${taskId} has ${records.length} of ${model.length} records, and nobody says so`);
  }
  return short;
}

/** Where the last record of an open segment begins. */
function lastRecordOf(file: Uint8Array): number {
  const { buffer, byteOffset } = file;
  const salt = new DataView(buffer, byteOffset).getUint32(20, true);
  let last = segmentHeaderBytes;
  for (let at = last; ; ) {
    const found = recordAt(file, at, salt);
    if (!("next" in found)) return last;
    last = at;
    at = found.next;
  }
}

/** The CRC-8 of a length of `high` × 65536, worked out bit by bit. */
function checkOf(high: number): number {
  let crc = 0xa5;
  for (const byte of [0, 0, high]) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc & 0x80 ? (crc << 1) ^ 0x07 : crc << 1) & 0xff;
  }
  return crc;
}

describe("a damaged journal", () => {
  const shapes = [
    { shape: "files", imageOf: () => image },
    { shape: "memory", imageOf: () => mappedImage },
  ];
  test.each(shapes)(
    `${corruptions} corruptions at random: recovered up to the damage, never other bytes, never silent ($shape)`,
    ({ imageOf }) => {
      const image = imageOf();
      const random = mulberry32(20261121);
      const below = (bound: number) => Math.floor(random() * bound);
      const names = [...image.keys()].sort();
      let untouched = 0;
      let unstored = 0;
      for (let round = 0; round < corruptions; round++) {
        const name = names[below(names.length)] ?? "";
        const bytesBefore = image.get(name) ?? new Uint8Array();
        const length = lastUsed(bytesBefore) + 1;
        const at = below(length);
        const kind = round % 4;
        const wrong = changed(
          name,
          (bytes) => {
            // One bit; three bits close together; a stretch of zeros; a stretch of noise.
            if (kind === 0) bytes[at] = (bytes[at] ?? 0) ^ (1 << below(8));
            else if (kind === 1)
              for (let flip = 0; flip < 3; flip++) {
                const near = Math.min(length - 1, at + below(8));
                bytes[near] = (bytes[near] ?? 0) ^ (1 << below(8));
              }
            else if (kind === 2) bytes.fill(0, at, at + 1 + below(64));
            else for (let index = at; index < Math.min(length, at + 40); index++) bytes[index] = below(256);
            return bytes;
          },
          image,
        );
        if (Buffer.compare(wrong.get(name) ?? new Uint8Array(), bytesBefore) === 0) {
          untouched++;
          continue;
        }
        const found = recover(wrong);
        // The last record without its length is one that was not stored to its end.
        const isNone = bytesBefore.length > length && kind === 2 && found.damage.length === 0;
        expectHonest(found, isNone);
        if (isNone) {
          unstored++;
          continue;
        }
        const [told] = found.damage;
        if (told?.file !== name || told.offset > at + 8)
          throw new Error(`round ${round}: ${name} at ${at}, told ${JSON.stringify(told)}`);
      }
      expect(untouched).toBeLessThan(corruptions / 20);
      expect(unstored).toBeLessThan(corruptions / 200);
    },
    60_000,
  );

  test("killed between any two stores of its last record: that one is missing, all before it is there", () => {
    const name = lastName(mappedImage);
    const whole = mappedImage.get(name) ?? new Uint8Array();
    const before = lastRecordOf(whole);
    const end = lastUsed(whole) + 1;
    const body = Array.from({ length: end - before - 8 }, (_, at) => before + 8 + at);
    const crc = [0, 1, 2, 3].map((at) => before + at);
    const order = [...body, ...crc];
    for (let stored = 0; stored <= order.length; stored++) {
      const missing = [...order.slice(stored), before + 4, before + 5, before + 6, before + 7];
      const files = new MemoryFiles(
        changed(
          name,
          (bytes) => {
            for (const at of missing) bytes[at] = 0;
            return bytes;
          },
          mappedImage,
        ),
      );
      const found = new FileJournal(files, 1024).recover();
      expect([...found.damage]).toEqual([]);
      expectHonest(found, true);
      const records = (of: JournalRecovery) =>
        [...of.tasks.values()].reduce((sum, { records: { length } }) => sum + length, 0);
      expect(records(found)).toBe(records(recover(mappedImage)) - 1);
      // The next process has closed it there.
      expect([...recover(files.image).damage]).toEqual([]);
      expect(records(recover(files.image))).toBe(records(found));
    }
  });

  test("a record that is missing before others is damage, whatever the room behind", () => {
    const name = lastName(mappedImage);
    const found = recover(
      changed(name, (bytes) => bytes.fill(0, segmentHeaderBytes + 4, segmentHeaderBytes + 8), mappedImage),
    );
    expect(found.damage).toMatchObject([{ file: name, offset: segmentHeaderBytes }]);
    expectHonest(found);
  });

  test("truncated at every offset: the last segment loses only its torn tail, an earlier one is damaged", () => {
    const names = [...image.keys()].sort();
    for (const name of [names[3] ?? "", names.at(-1) ?? ""]) {
      const isLast = name === names.at(-1);
      const length = image.get(name)?.byteLength ?? 0;
      for (let bytes = 0; bytes < length; bytes++) {
        const files = new MemoryFiles(changed(name, (all) => all.slice(0, bytes)));
        const found = new FileJournal(files, 1024).recover();
        expectHonest(found, isLast);
        if (isLast) expect(found.damage).toEqual([]);
        else expect(found.damage[0]?.file).toBe(name);
        // Once more: what was mended is in order, what is damaged still is.
        const again = recover(files.image);
        expectHonest(again, isLast);
        expect(again.damage).toEqual(found.damage);
      }
    }
  }, 60_000);

  test("a length whose check was damaged with it does not pass for half a write", () => {
    const name = [...image.keys()].sort().at(-1) ?? "";
    // Behind the header, the first record: a length that nothing but the CRC and what follows gives away.
    const found = recover(
      changed(name, (bytes) => {
        bytes.set([0, 0, 0x7f, checkOf(0x7f)], segmentHeaderBytes + 4);
        return bytes;
      }),
    );
    expect(found.damage).toMatchObject([{ file: name, offset: segmentHeaderBytes }]);
    expectHonest(found);
  });

  test("a task begun again is whole after the next restart, the others are still told; then the segment goes", async () => {
    const [first = ""] = [...image.keys()].sort();
    const files = new MemoryFiles(
      changed(first, (bytes) => {
        bytes[700] = (bytes[700] ?? 0) ^ 1;
        return bytes;
      }),
    );
    const journal = new FileJournal(files, 1024);
    const { tasks: found, damage } = journal.recover();
    expect(damage).toHaveLength(1);
    const hit = [...found].filter(([, { damaged }]) => damaged).map(([taskId]) => taskId);
    expect(hit.length).toBeGreaterThan(1);
    const [one = "", ...rest] = hit;
    expect(() => journal.append(one, journalToken(one, 0))).toThrow("damaged");
    journal.append(one, journalRecord("begin_again", one, 0));
    journal.append("new", journalToken("new", 0));
    journal.flush();
    while (await journal.compact());
    const next = recover(files.image);
    expect(next.tasks.get(one)).toMatchObject({ damaged: false });
    expect(next.tasks.get("new")).toMatchObject({ damaged: false });
    expect([...next.tasks].filter(([, { damaged }]) => damaged).map(([taskId]) => taskId)).toEqual(rest);
    for (const taskId of rest) journal.forget(taskId);
    journal.forget(one);
    while (await journal.compact());
    expect(recover(files.image).damage).toEqual([]);
    await journal.close();
  });

  test("a segment of which nothing can be read stays until every damaged task is begun again or forgotten", async () => {
    const name = [...image.keys()].sort().at(-1) ?? "";
    const files = new MemoryFiles(changed(name, (bytes) => bytes.fill(7, 0, 4)));
    const journal = new FileJournal(files, 1024);
    const first = journal.recover();
    expect(first.damage).toMatchObject([{ file: name, offset: 0 }]);
    const hit = [...first.tasks].filter(([, { damaged }]) => damaged).map(([taskId]) => taskId);
    expect(hit).toContain("d");
    while (await journal.compact());
    journal.append("new", journalToken("new", 0));
    for (const taskId of hit)
      if (taskId !== "d") journal.append(taskId, journalRecord("begin_again", taskId, 0));
    journal.flush();
    while (await journal.compact());
    const next = recover(files.image);
    expect([...next.tasks].filter(([, { damaged }]) => damaged).map(([taskId]) => taskId)).toEqual(["d"]);
    journal.append("d", journalRecord("begin_again", "d", 0));
    while (await journal.compact());
    expect(recover(files.image).tasks.get("d")?.damaged).toBe(true);
    journal.flush();
    while (await journal.compact());
    expect(recover(files.image).damage).toEqual([]);
    expect(recover(files.image).tasks.get("d")).toMatchObject({ damaged: false });
    await journal.close();
  });

  test("a newer version and overlapping segments are refused by name, and nothing is changed", () => {
    const [name = "", second = ""] = [...image.keys()].sort();
    const newer = changed(name, (bytes) => {
      bytes[8] = 2;
      const view = new DataView(bytes.buffer);
      view.setUint32(28, Bun.hash.crc32(bytes.subarray(0, 28)), true);
      return bytes;
    });
    const overlapping = new Map([...image, ["0000000001-0000000002.seg", new Uint8Array()] as const]);
    overlapping.set("0000000002-0000000003.seg", image.get(second) ?? new Uint8Array());
    for (const [of, kind, named] of [
      [newer, "newer", name],
      [overlapping, "damaged", "0000000002-0000000003.seg"],
    ] as const) {
      const files = new MemoryFiles(of);
      let failure: unknown = null;
      try {
        new FileJournal(files).recover();
      } catch (error) {
        failure = error;
      }
      expect(isJournalError(failure) && failure.journalErrorKind).toBe(kind);
      expect(String(failure)).toContain(named);
      expect(files.image).toEqual(of);
    }
  });
});
