import { ApiError } from "../api";

/** A message without the name of its field in front, where it stands beside that field. */
function beside(message: string): string {
  const words = message.replace(/^[\w.]+: /, "");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** The message for one input, and what is left to show below the form. */
export function problems(error: unknown, fields: readonly string[]): { at: (field: string) => string | undefined; rest: unknown } {
  const field = error instanceof ApiError && error.field && fields.includes(error.field) ? error.field : null;
  return {
    at: (name) => (field === name && error instanceof ApiError ? beside(error.message) : undefined),
    rest: field === null ? error : null,
  };
}
