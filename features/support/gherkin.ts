/**
 * Gherkin inside `bun test`: reads feature files, binds their steps and turns every pickle into a test. Called by
 * features.test.ts.
 *
 * Always: all steps of all scenarios are bound before anything runs; a step that nothing or more than one
 * definition matches fails its scenario; a file that does not parse, a feature without scenarios and a scenario
 * without steps fail (a misspelt keyword becomes description text, and what is left would pass empty).
 */
import { readFileSync } from "node:fs";
import {
  CucumberExpression,
  type Expression,
  ParameterType,
  ParameterTypeRegistry,
} from "@cucumber/cucumber-expressions";
import { AstBuilder, compile, GherkinClassicTokenMatcher, Parser } from "@cucumber/gherkin";
import { IdGenerator, type Pickle, type PickleStep } from "@cucumber/messages";

/** A data table; `cells` without any header taken out. */
export class Table {
  constructor(readonly cells: readonly (readonly string[])[]) {}

  /** Two columns, name and JSON value; what is not JSON is text. */
  fields(): Record<string, unknown> {
    return Object.fromEntries(
      this.cells.map((row) => {
        if (row.length !== 2) throw new Error(`name and value expected, found | ${row.join(" | ")} |`);
        return [row[0] ?? "", jsonOrText(row[1] ?? "")];
      }),
    );
  }

  /** The one column of a table that has one. */
  column(): string[] {
    return this.cells.map((row) => {
      if (row.length !== 1) throw new Error(`one cell expected, found | ${row.join(" | ")} |`);
      return row[0] ?? "";
    });
  }
}

export function jsonOrText(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}

type StepFunction<W> = (world: W, ...args: unknown[]) => unknown;

interface Definition<W> {
  readonly expression: Expression;
  readonly run: StepFunction<W>;
  used: boolean;
}

interface BoundStep<W> {
  readonly step: PickleStep;
  readonly definition: Definition<W>;
  readonly args: readonly unknown[];
}

export interface Scenario<W> {
  readonly name: string;
  readonly tags: readonly string[];
  run(world: W): Promise<void>;
}

export interface FeatureFile<W> {
  readonly name: string;
  readonly scenarios: readonly Scenario<W>[];
}

export class StepLibrary<W> {
  readonly #parameters = new ParameterTypeRegistry();
  readonly #definitions: Definition<W>[] = [];

  /** A parameter type: `{name}` in step texts matches one of `values`. */
  parameter<T extends string>(name: string, values: readonly T[]): void {
    const pattern = values.map((value) => value.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|");
    this.#parameters.defineParameterType(
      new ParameterType<string>(name, new RegExp(pattern), String, (text: string) => text, false),
    );
  }

  /** `A` are the arguments: one for each parameter, then the data table or doc string where there is one. */
  define<A extends readonly unknown[]>(
    text: string,
    run: (world: W, ...args: { [I in keyof A]: A[I] }) => unknown,
  ): void {
    this.#definitions.push({
      expression: new CucumberExpression(text, this.#parameters),
      run: run as StepFunction<W>,
      used: false,
    });
  }

  /** Definitions that no scenario which was bound uses. */
  unused(): string[] {
    return this.#definitions.filter(({ used }) => !used).map(({ expression }) => expression.source);
  }

  /** Throws on what would otherwise be an empty pass. */
  load(path: string, label: string): FeatureFile<W> {
    const newId = IdGenerator.incrementing();
    const parser = new Parser(new AstBuilder(newId), new GherkinClassicTokenMatcher());
    const document = parser.parse(readFileSync(path, "utf8"));
    const pickles = compile(document, label, newId);
    if (document.feature === undefined || pickles.length === 0) throw new Error(`${label}: no scenarios`);
    const outlines = document.feature.children.flatMap((child) => [
      ...(child.scenario === undefined ? [] : [child.scenario]),
      ...(child.rule?.children.flatMap((inner) => inner.scenario ?? []) ?? []),
    ]);
    // An outline whose examples are missing compiles to nothing at all.
    for (const { id, name, steps } of outlines) {
      if (steps.length === 0) throw new Error(`${label}: scenario "${name}" has no steps`);
      if (!pickles.some((pickle) => pickle.astNodeIds.includes(id)))
        throw new Error(`${label}: scenario outline "${name}" has no examples`);
    }
    const names = new Map<string, number>();
    return {
      name: document.feature.name,
      scenarios: pickles.map((pickle) => {
        const nth = (names.get(pickle.name) ?? 0) + 1;
        names.set(pickle.name, nth);
        return this.#scenario(pickle, label, nth === 1 ? pickle.name : `${pickle.name} (${nth})`);
      }),
    };
  }

  #scenario(pickle: Pickle, label: string, name: string): Scenario<W> {
    // Bound here and not in its test, so that `unused` does not depend on which tests are chosen to run.
    const bound = this.#bindAll(pickle);
    return {
      name,
      tags: pickle.tags.map((tag) => tag.name),
      run: async (world) => {
        if (bound instanceof Error) throw bound;
        for (const { step, definition, args } of bound) {
          try {
            await definition.run(world, ...args);
          } catch (error) {
            if (error instanceof Error) error.message = `${label}: step "${step.text}": ${error.message}`;
            throw error;
          }
        }
      },
    };
  }

  #bindAll(pickle: Pickle): BoundStep<W>[] | Error {
    try {
      return pickle.steps.map((step) => this.#bind(step));
    } catch (error) {
      return error instanceof Error ? error : new Error(String(error));
    }
  }

  #bind(step: PickleStep): BoundStep<W> {
    const hits = this.#definitions.flatMap((definition) => {
      const args = definition.expression.match(step.text);
      return args === null ? [] : [{ definition, args: args.map((arg) => arg.getValue<unknown>(null)) }];
    });
    const [hit] = hits;
    if (hit === undefined) throw new Error(`undefined step: ${step.text}`);
    if (hits.length > 1) {
      const sources = hits.map(({ definition }) => definition.expression.source).join("\n  ");
      throw new Error(`ambiguous step: ${step.text}\n  ${sources}`);
    }
    hit.definition.used = true;
    const { docString, dataTable } = step.argument ?? {};
    const extra: unknown[] = [];
    if (docString !== undefined) extra.push(docString.content);
    if (dataTable !== undefined)
      extra.push(new Table(dataTable.rows.map((row) => row.cells.map((cell) => cell.value))));
    return { step, definition: hit.definition, args: [...hit.args, ...extra] };
  }
}
