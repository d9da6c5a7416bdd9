/**
 * Owns the weight matrix being filled entry by entry, and the norm that leaves a vector as it is. Called by
 * the weight builders in this folder. Always holds: dimension 0 of every model's residual stream carries
 * `constantSize`, so large against all else that RMSNorm divides by nearly the same number everywhere.
 */
import type { Tensor } from "./gguf-writer.ts";

/** Exact in F16, and the square root of what RMSNorm sees as the sum of squares. */
export const constantSize = 2048;

/** A matrix of a llama.cpp `mul_mat`: `rows` outputs of `columns` inputs each, all zero at first. */
export class Matrix {
  readonly data: Float32Array;

  constructor(
    readonly rows: number,
    readonly columns: number,
  ) {
    this.data = new Float32Array(rows * columns);
  }

  set(row: number, column: number, value: number): void {
    if (row >= this.rows || column >= this.columns) throw new Error(`no entry ${row}, ${column}`);
    this.data[row * this.columns + column] = value;
  }

  tensor(name: string): Tensor {
    return { name, shape: [this.columns, this.rows], type: "F32", data: this.data };
  }
}

/** Norm weights that undo RMSNorm's division and turn the constant into `constant`, 1 unless told. */
export function normTensor(name: string, width: number, constant = 1): Tensor {
  const data = new Float32Array(width).fill(constantSize / Math.sqrt(width));
  data[0] = constant / Math.sqrt(width);
  return { name, shape: [width], type: "F32", data };
}

export function vectorTensor(name: string, length: number, value: number): Tensor {
  return { name, shape: [length], type: "F32", data: new Float32Array(length).fill(value) };
}
