/** Links that hold a whole program: after the `#`, which browsers do not send to any server. */

export interface Shared {
  language: string;
  code: string;
  stdin: string;
  args: string[];
}

const MOST_BYTES = 1024 * 1024; // unpacked; a short link could hold gigabytes of blanks
const MARK = "#code=";

async function through(data: Uint8Array<ArrayBuffer>, transform: CompressionStream | DecompressionStream): Promise<Uint8Array<ArrayBuffer>> {
  const reader = new Blob([data]).stream().pipeThrough(transform).getReader();
  const parts: Uint8Array<ArrayBuffer>[] = [];
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    size += value.length;
    if (size > MOST_BYTES) {
      await reader.cancel();
      throw new Error("the program in this link is too long");
    }
    parts.push(value);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/** The part of a link that holds *shared*: `#code=…`. */
export async function toHash(shared: Shared): Promise<string> {
  const packed = await through(new TextEncoder().encode(JSON.stringify(shared)), new CompressionStream("deflate-raw"));
  let binary = "";
  for (const byte of packed) binary += String.fromCharCode(byte);
  return MARK + btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** The program in *hash*; `null` where there is none. Throws when there is one that cannot be read. */
export async function fromHash(hash: string): Promise<Shared | null> {
  if (!hash.startsWith(MARK)) return null;
  try {
    const binary = atob(hash.slice(MARK.length).replaceAll("-", "+").replaceAll("_", "/"));
    const packed = Uint8Array.from(binary, (character) => character.charCodeAt(0));
    const plain = await through(packed, new DecompressionStream("deflate-raw"));
    const found = JSON.parse(new TextDecoder().decode(plain)) as Partial<Record<keyof Shared, unknown>>;
    const text = (value: unknown) => (typeof value === "string" ? value : "");
    return {
      language: text(found.language),
      code: text(found.code),
      stdin: text(found.stdin),
      args: Array.isArray(found.args) ? found.args.map(text) : [],
    };
  } catch (error) {
    throw new Error(`this link cannot be opened: it was cut off or changed (${error instanceof Error ? error.message : "unreadable"})`);
  }
}
