// Writes a .br and a .gz beside every built file that gets smaller by it, so that the server compresses nothing.
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";

const output = join(dirname(fileURLToPath(import.meta.url)), "../../src/stockade/web/assets");
const kinds = new Set([".css", ".html", ".js", ".json", ".svg"]);
const least = 512; // bytes; below that the header costs more than it saves

for (const entry of readdirSync(output, { recursive: true })) {
  const path = join(output, entry);
  // The server writes a nonce into index.html and sends that one as it is.
  if (!statSync(path).isFile() || !kinds.has(extname(path)) || entry === "index.html") continue;
  const plain = readFileSync(path);
  if (plain.length < least) continue;
  const brotli = brotliCompressSync(plain, {
    params: { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_SIZE_HINT]: plain.length },
  });
  const gzip = gzipSync(plain, { level: 9 });
  if (brotli.length < plain.length) writeFileSync(`${path}.br`, brotli);
  if (gzip.length < plain.length) writeFileSync(`${path}.gz`, gzip);
}
