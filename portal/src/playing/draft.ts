/** What was typed and not yet kept anywhere: stays in this tab, also when it is loaded again. */

const KEY = "stockade.draft";

export interface Draft {
  language: string;
  /** A program for each language, so that looking at another one loses nothing. */
  programs: Record<string, string>;
  stdin: string;
  args: string;
  wall: string;
  memory: string;
}

export const EMPTY: Draft = { language: "", programs: {}, stdin: "", args: "", wall: "", memory: "" };

export function readDraft(): Draft {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEY) ?? "{}") as Partial<Draft>;
    return { ...EMPTY, ...kept };
  } catch {
    return EMPTY; // storage is switched off, or holds something else
  }
}

export function keepDraft(draft: Draft): void {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(draft));
  } catch {
    // Too long, or switched off: it holds until the tab is closed.
  }
}

export function forgetDraft(): void {
  try {
    sessionStorage.removeItem(KEY);
  } catch {
    // There is nothing.
  }
}
