/** Absolute paths inside a sandbox. */

export function join(folder: string, name: string): string {
  return folder.endsWith("/") ? folder + name : `${folder}/${name}`;
}

export function parent(path: string): string {
  return path.slice(0, path.lastIndexOf("/")) || "/";
}

export interface Crumb {
  name: string;
  path: string;
}

/** The folders on the way to `path`, the root first. */
export function crumbs(path: string): Crumb[] {
  const names = path.split("/").filter((name) => name !== "");
  return [
    { name: "/", path: "/" },
    ...names.map((name, index) => ({ name, path: `/${names.slice(0, index + 1).join("/")}` })),
  ];
}

/** What is wrong with `name` for a new entry; empty when nothing is. */
export function nameProblem(name: string): string {
  if (name === "" || name === "." || name === "..") {
    return "Type a name.";
  }
  if (name.includes("/") || name.includes("\0")) {
    return "A name cannot hold a slash.";
  }
  return new TextEncoder().encode(name).length > 255 ? "A name is at most 255 bytes long." : "";
}

/** Permission bits as `ls -l` writes them; the server may have written them out already. */
export function permissions(mode: number | string): string {
  if (typeof mode === "string") {
    return mode;
  }
  return [6, 3, 0]
    .map((shift) => ["r", "w", "x"].map((letter, bit) => (mode & ((4 >> bit) << shift) ? letter : "-")).join(""))
    .join("");
}
