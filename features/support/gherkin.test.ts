/** The runner itself: what must not pass does not, and what a scenario means is what runs. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { StepLibrary, type Table } from "./gherkin.ts";

const folder = mkdtempSync(join(tmpdir(), "orchd-gherkin-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

type Told = string[];
function libraryOf(): StepLibrary<Told> {
  const library = new StepLibrary<Told>();
  library.parameter("fruit", ["apple", "pear"]);
  library.define<[string, number]>("I have a(n) {fruit} of {int} g", (told, fruit, grams) => {
    told.push(`${fruit} ${grams}`);
  });
  library.define<[Table]>("I have:", (told, table) => {
    told.push(JSON.stringify(table.fields()));
  });
  library.define<[string]>("I say:", (told, text) => {
    told.push(text);
  });
  library.define("it breaks", () => {
    throw new Error("broken");
  });
  return library;
}

function load(text: string, library = libraryOf()) {
  const path = join(folder, `${Bun.hash(text)}.feature`);
  writeFileSync(path, text);
  return library.load(path, "test.feature");
}

async function runAll(text: string, library = libraryOf()): Promise<Told> {
  const told: Told = [];
  for (const scenario of load(text, library).scenarios) {
    told.push(`# ${scenario.name} ${scenario.tags.join(" ")}`.trim());
    await scenario.run(told);
  }
  return told;
}

test("background, outline, tags, tables and doc strings reach the steps", async () => {
  const told = await runAll(`@all
Feature: f
  Background:
    Given I have an apple of 1 g
  @one
  Scenario: first
    Then I have:
      | a | 1 |
      | b | x |
  Rule: r
    Scenario Outline: of <n>
      Then I have a pear of <n> g
      And I say:
        """
        <n> g
        """
      Examples:
        | n |
        | 2 |
        | 3 |
`);
  expect(told).toEqual([
    "# first @all @one",
    "apple 1",
    '{"a":1,"b":"x"}',
    "# of 2 @all",
    "apple 1",
    "pear 2",
    "2 g",
    "# of 3 @all",
    "apple 1",
    "pear 3",
    "3 g",
  ]);
});

describe("fails", () => {
  test("on a step that nobody defined, before any other step runs", async () => {
    const told: Told = [];
    const [scenario] = load(
      "Feature: f\n Scenario: s\n  Given I have a pear of 1 g\n  Then I have a plum of 1 g\n",
    ).scenarios;
    await expect(scenario?.run(told)).rejects.toThrow("undefined step: I have a plum of 1 g");
    expect(told).toEqual([]);
  });

  test("on a step that two definitions match", async () => {
    const library = libraryOf();
    library.define<[string]>("I have a {word} of 1 g", () => undefined);
    const text = "Feature: f\n Scenario: s\n  Given I have a pear of 1 g\n";
    await expect(runAll(text, library)).rejects.toThrow("ambiguous step");
  });

  test("with the step and the file where a step fails", async () => {
    const text = "Feature: f\n Scenario: s\n  Given it breaks\n";
    await expect(runAll(text)).rejects.toThrow('test.feature: step "it breaks": broken');
  });

  test("on what would pass because it is empty", () => {
    const empty: Readonly<Record<string, string>> = {
      "no scenarios": "Feature: f\n",
      "expected:": "Featrue: f\n Scenario: s\n  Given it breaks\n",
      'scenario "s" has no steps': "Feature: f\n Scenario: s\n  Gven it breaks\n",
      'outline "o" has no examples':
        "Feature: f\n Scenario Outline: o\n  Given it breaks\n  Examples:\n   | n |\n Scenario: s\n  Given it breaks\n",
    };
    for (const [why, text] of Object.entries(empty)) expect(() => load(text)).toThrow(why);
  });
});

test("steps that no scenario uses are named", () => {
  const library = libraryOf();
  load("Feature: f\n Scenario: s\n  Given I have a pear of 1 g\n  Then it breaks\n", library);
  expect(library.unused()).toEqual(["I have:", "I say:"]);
});
