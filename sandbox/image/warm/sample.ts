// Compiled once while the snapshot is made, so that the compiler's functions for common code are in it.
import * as fs from "fs";
import { createInterface } from "readline";

interface Shape { readonly name: string; area(): number; }
type Kind = "circle" | "square";
enum Colour { Red = 1, Green }

abstract class Base<T extends object> implements Shape {
  static made = 0;
  private readonly parts: T[] = [];
  constructor(readonly name: string, protected kind?: Kind) { Base.made++; }
  abstract area(): number;
  get size(): number { return this.parts.length; }
  add(...items: T[]): this { this.parts.push(...items); return this; }
  *[Symbol.iterator](): Iterator<T> { yield* this.parts; }
}

class Square extends Base<{ side: number }> {
  override area(): number { return [...this].reduce((sum, { side }) => sum + side ** 2, 0); }
}

function pick<T, K extends keyof T>(from: T, key: K): T[K] { return from[key]; }

const counts = new Map<string, number>();
for (const word of fs.readFileSync(0, "utf8").split(/\s+/)) counts.set(word, (counts.get(word) ?? 0) + 1);
const table: Record<string, Partial<Shape>> = { a: new Square("a", "square").add({ side: 2 }) };

async function main(args: readonly string[]): Promise<void> {
  const lines: string[] = [];
  for await (const line of createInterface({ input: process.stdin })) lines.push(line.trim());
  await new Promise<void>((done) => setTimeout(done, 1));
  const [first = "none", ...rest] = args;
  console.log(`${first} ${rest.length} ${Colour[Colour.Red]} ${table.a?.name?.toUpperCase()}`, pick({ x: 1 }, "x"));
  console.log(Array.from(counts.entries()).sort(([, a], [, b]) => b - a).map(([w, n]) => ({ w, n })), Math.max(1, 2));
  try { JSON.parse(lines.join("")); } catch (error) { if (error instanceof Error) console.error(error.message); }
}
main(process.argv.slice(2)).catch((error: unknown) => { process.exitCode = typeof error === "string" ? 1 : 2; });
