// Prints the schemas of zod 4 in schemas.jsonl: `npm install zod@4.6.7 && node from_zod.mjs`.
import { z } from "zod";

const sources = [
  "z.float32()", "z.float64()", "z.int32()", "z.uint32()", "z.int()", "z.number()", "z.number().positive()",
  "z.number().negative()", "z.number().min(1e-100)", "z.number().max(-1e-100)", "z.number().multipleOf(0.01)",
  "z.number().gt(0).lt(0.5)", "z.number().min(1e19)", "z.number().max(-1e300)", "z.int().min(-(2 ** 60))",
  "z.int().multipleOf(2 ** 40)", "z.string().max(2 ** 32)", "z.string().min(1).max(2 ** 53)",
  "z.array(z.int()).max(2 ** 32)", "z.array(z.float32()).min(1).max(3)", "z.record(z.string(), z.float64())",
  "z.union([z.float32(), z.null()])", "z.object({ a: z.float64(), b: z.int().optional() })",
  "z.intersection(z.number().min(1e-80), z.number().max(5))",
];
const bigintSources = ["z.int64()", "z.uint64()"]; // which JSON has as integers
const made = (source) => z.toJSONSchema(eval(source), { unrepresentable: "any" });
const integer = (source) => {
  const [minimum, maximum] = z.core.util.BIGINT_FORMAT_RANGES[eval(source)._zod.def.format];
  return { ...made(source), type: "integer", minimum, maximum };
};
const written = (key, value) => (typeof value === "bigint" ? `BIG${value}` : value);
for (const source of sources) console.log(JSON.stringify({ source, schema: made(source) }));
for (const source of bigintSources)
  console.log(JSON.stringify({ source, schema: integer(source) }, written).replace(/"BIG(-?\d+)"/g, "$1"));
