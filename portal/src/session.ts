/** Who is signed in: `undefined` until the server said so, `null` for nobody. */

import { computed, signal } from "@preact/signals";
import * as api from "./api";
import { forgetDraft } from "./playing/draft";

export const session = signal<api.Session | null | undefined>(undefined);

/** Why the question who is signed in has no answer yet. */
export const sessionError = signal<api.ApiError | null>(null);
export const isAdmin = computed(() => session.value?.user.role === "admin");

api.whenSignedOut(() => {
  session.value = null;
});

export async function loadSession(): Promise<void> {
  sessionError.value = null;
  try {
    session.value = await api.session.get();
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    if (error.status === 401) session.value = null;
    else sessionError.value = error;
  }
}

export async function logIn(email: string, password: string): Promise<void> {
  session.value = await api.session.open(email, password);
}

export async function register(person: Parameters<typeof api.session.register>[0]): Promise<void> {
  session.value = await api.session.register(person);
}

export async function logOut(): Promise<void> {
  await api.session.close();
  forgetDraft(); // the next one at this browser need not see it
  session.value = null;
}

/** Where to go after signing in: a path of ours, never another site's. */
export function nextPath(search: string): string {
  const next = new URLSearchParams(search).get("next") ?? "";
  return /^\/app(\/[\w\-/]*)?([?#].*)?$/.test(next) ? next : "/app";
}
