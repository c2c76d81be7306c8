/** The portal's API, typed. A request that changes something carries the CSRF token that the server gave this page. */

import type {
  AdminUser,
  ApiKey,
  FileEntry,
  Health,
  Job,
  JobQuery,
  JobRequest,
  JobSummary,
  KeyRequest,
  KeyWithSecret,
  Language,
  LogIn,
  Meta,
  Nodes,
  Paged,
  QueueDepth,
  Sandbox,
  SandboxRequest,
  Session,
  Usage,
} from "./types";

export type * from "./types";

const DEADLINE_MS = 30_000;

/** A request that the server refused, or that never reached it (status 0). */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly field: string | null = null,
    readonly retryAfterS: number | null = null,
  ) {
    super(message);
    this.name = "ApiError";
  }
}

/** Called with every answer that says that nobody is signed in. */
let onSignedOut: () => void = () => undefined;
export function whenSignedOut(callback: () => void): void {
  onSignedOut = callback;
}

let csrf = "";
let fetchedMeta: Promise<Meta> | null = null;

/** What the server told about itself; asked for once. */
export function meta(): Promise<Meta> {
  fetchedMeta ??= request<Meta>("GET", "/api/meta").then(
    (answer) => {
      csrf ||= answer.csrf;
      return answer;
    },
    (error: unknown) => {
      fetchedMeta = null;
      throw error;
    },
  );
  return fetchedMeta;
}

async function newCsrf(): Promise<void> {
  csrf = "";
  fetchedMeta = null;
  // Whoever is signed in gets the token of their session; everybody else one from before.
  await session.get().catch(() => meta());
}

/** The header that a request outside this module (an upload with progress) needs. */
export async function csrfHeader(): Promise<Record<string, string>> {
  if (!csrf) await newCsrf();
  return { "X-CSRF-Token": csrf };
}

interface Options {
  json?: unknown;
  body?: BodyInit;
  signal?: AbortSignal;
}

async function send(method: string, path: string, options: Options): Promise<Response> {
  const headers: Record<string, string> = { Accept: "application/json" };
  if (method !== "GET") Object.assign(headers, await csrfHeader());
  if (options.json !== undefined) headers["Content-Type"] = "application/json";
  const deadline = AbortSignal.timeout(DEADLINE_MS);
  try {
    return await fetch(path, {
      method,
      headers,
      body: options.json === undefined ? (options.body ?? null) : JSON.stringify(options.json),
      credentials: "same-origin",
      signal: options.signal ? AbortSignal.any([options.signal, deadline]) : deadline,
    });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    const message = deadline.aborted
      ? "The server took too long to answer. Try again in a moment."
      : "The server cannot be reached. Check that it runs and that you are online, then try again.";
    throw new ApiError(0, "network", message);
  }
}

export async function toError(response: Response): Promise<ApiError> {
  const wait = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  const retryAfterS = Number.isNaN(wait) ? null : wait;
  const body: unknown = await response.json().catch(() => null);
  if (body && typeof body === "object" && "message" in body) {
    const { error, message, field } = body as { error?: string; message: string; field?: string };
    return new ApiError(response.status, error ?? "unknown", message, field ?? null, retryAfterS);
  }
  return new ApiError(response.status, "unknown", `The server answered with status ${response.status}.`, null, retryAfterS);
}

async function request<T>(method: string, path: string, options: Options = {}): Promise<T> {
  let response = await send(method, path, options);
  if (response.status === 403 && method !== "GET") {
    const error = await toError(response);
    if (!error.code.includes("csrf")) throw error;
    // The token is one of a session that ended or began in another tab.
    await newCsrf();
    response = await send(method, path, options);
  }
  if (!response.ok) {
    const error = await toError(response);
    if (error.code === "auth.required") onSignedOut();
    throw error;
  }
  if (response.status === 204) return undefined as T;
  const kind = response.headers.get("Content-Type") ?? "";
  return (await (kind.includes("json") ? response.json() : response.text())) as T;
}

async function remembered(answer: Promise<Session>): Promise<Session> {
  const session = await answer;
  csrf = session.csrf;
  return session;
}

function query(values: object): string {
  const pairs = Object.entries(values).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const text = new URLSearchParams(pairs.map(([name, value]): [string, string] => [name, String(value)])).toString();
  return text ? `?${text}` : "";
}

const part = encodeURIComponent;

export const session = {
  get: () => remembered(request<Session>("GET", "/api/session")),
  open: (email: string, password: string) =>
    remembered(request<Session>("POST", "/api/session", { json: { email, password } })),
  close: () => request<void>("DELETE", "/api/session").finally(() => ((csrf = ""), (fetchedMeta = null))),
  register: (person: { name: string; email: string; organization?: string; password: string }) =>
    remembered(request<Session>("POST", "/api/register", { json: person })),
  oidcUrl: (next: string) => `/api/oidc/start${query({ next })}`,
};

export const password = {
  change: (old: string, fresh: string) => request<void>("POST", "/api/password", { json: { old, new: fresh } }),
  forgot: (email: string) => request<unknown>("POST", "/api/password/forgot", { json: { email } }),
  reset: (token: string, fresh: string) =>
    request<void>("POST", "/api/password/reset", { json: { token, password: fresh } }),
};

export const email = {
  sendAgain: () => request<unknown>("POST", "/api/email/verification"),
  verify: (token: string) => request<void>("POST", "/api/email/verify", { json: { token } }),
};

export const logIns = {
  list: () => request<{ sessions: LogIn[] }>("GET", "/api/sessions").then((answer) => answer.sessions),
  end: (id: string) => request<void>("DELETE", `/api/sessions/${part(id)}`),
  endOthers: () => request<void>("DELETE", "/api/sessions"),
};

export const account = {
  change: (profile: { name?: string; organization?: string }) =>
    remembered(request<Session>("PATCH", "/api/account", { json: profile })),
  exportUrl: "/api/account/export",
  /** With the password; an account without one gives its address again. */
  delete: (proof: { password: string } | { email: string }) => request<void>("DELETE", "/api/account", { json: proof }),
};

let fetchedLanguages: Promise<Language[]> | null = null;

/** The languages, asked for once. */
export function languages(): Promise<Language[]> {
  fetchedLanguages ??= request<{ languages: Language[] }>("GET", "/api/languages").then(
    (answer) => answer.languages,
    (error: unknown) => {
      fetchedLanguages = null;
      throw error;
    },
  );
  return fetchedLanguages;
}

export const jobs = {
  submit: (job: JobRequest) => request<Job>("POST", "/api/jobs", { json: job }),
  list: (which: JobQuery = {}, signal?: AbortSignal): Promise<Paged<JobSummary>> =>
    request<{ jobs: JobSummary[]; cursor: string | null }>("GET", `/api/jobs${query(which)}`, { signal }).then((answer) => ({
      items: answer.jobs,
      cursor: answer.cursor,
    })),
  get: (id: string) => request<Job>("GET", `/api/jobs/${part(id)}`),
  cancel: (id: string) => request<Job>("POST", `/api/jobs/${part(id)}/cancel`),
  retry: (id: string) => request<Job>("POST", `/api/jobs/${part(id)}/retry`),
  forget: (id: string) => request<void>("DELETE", `/api/jobs/${part(id)}`),
  eventsUrl: (id: string) => `/api/jobs/${part(id)}/events`,
};

export const sandboxes = {
  list: (which: { state?: string; cursor?: string } = {}): Promise<Paged<Sandbox>> =>
    request<{ sandboxes: Sandbox[]; cursor: string | null }>("GET", `/api/sandboxes${query(which)}`).then((answer) => ({
      items: answer.sandboxes,
      cursor: answer.cursor,
    })),
  create: (sandbox: SandboxRequest) => request<Sandbox>("POST", "/api/sandboxes", { json: sandbox }),
  get: (id: string) => request<Sandbox>("GET", `/api/sandboxes/${part(id)}`),
  stop: (id: string) => request<Sandbox>("POST", `/api/sandboxes/${part(id)}/stop`),
  kill: (id: string) => request<Sandbox>("POST", `/api/sandboxes/${part(id)}/kill`),
  extend: (id: string, seconds: number) =>
    request<Sandbox>("POST", `/api/sandboxes/${part(id)}/extend`, { json: { seconds } }),
  logs: (id: string, stream: "stdout" | "stderr") =>
    request<string>("GET", `/api/sandboxes/${part(id)}/logs${query({ stream })}`),
  terminalUrl: (id: string, options: { cols: number; rows: number; attach?: "main" }) => {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    return `${scheme}://${location.host}/api/sandboxes/${part(id)}/terminal${query(options)}`;
  },
};

export const files = {
  list: (sandbox: string, path: string) =>
    request<{ path: string; entries: FileEntry[] }>("GET", `/api/sandboxes/${part(sandbox)}/files${query({ path })}`),
  contentUrl: (sandbox: string, path: string) => `/api/sandboxes/${part(sandbox)}/files/content${query({ path })}`,
  makeDirectory: (sandbox: string, path: string) =>
    request<void>("POST", `/api/sandboxes/${part(sandbox)}/files/directory`, { json: { path } }),
  delete: (sandbox: string, path: string) =>
    request<void>("DELETE", `/api/sandboxes/${part(sandbox)}/files${query({ path })}`),
  /** Write a file; *onProgress* gets the bytes that left so far. (`fetch` tells nothing of an upload's progress.) */
  async upload(sandbox: string, path: string, body: Blob, onProgress?: (sent: number) => void, signal?: AbortSignal): Promise<void> {
    const headers = await csrfHeader();
    await new Promise<void>((resolve, reject) => {
      const upload = new XMLHttpRequest();
      upload.open("PUT", files.contentUrl(sandbox, path));
      for (const [name, value] of Object.entries(headers)) upload.setRequestHeader(name, value);
      upload.setRequestHeader("Content-Type", "application/octet-stream");
      if (onProgress) upload.upload.onprogress = (event) => onProgress(event.loaded);
      signal?.addEventListener("abort", () => upload.abort());
      upload.onabort = () => reject(new ApiError(0, "cancelled", "The upload was cancelled."));
      upload.onerror = () => reject(new ApiError(0, "network", "The upload was cut off. Try again."));
      upload.onload = () => {
        if (upload.status < 300) return resolve();
        const wait = upload.getResponseHeader("Retry-After");
        const answer = new Response(upload.responseText, {
          status: upload.status,
          headers: wait ? { "Retry-After": wait } : {},
        });
        toError(answer).then((error) => {
          if (error.code === "auth.required") onSignedOut();
          reject(error);
        }, reject);
      };
      upload.send(body);
    });
  },
};

export const usage = {
  get: (options: { days: number; key?: string }) => request<Usage>("GET", `/api/usage${query(options)}`),
  csvUrl: (days: number) => `/api/usage.csv${query({ days })}`,
};

export const keys = {
  list: () => request<{ keys: ApiKey[] }>("GET", "/api/keys").then((answer) => answer.keys),
  create: (key: KeyRequest) => request<KeyWithSecret>("POST", "/api/keys", { json: key }),
  change: (id: string, changes: Partial<KeyRequest>) => request<ApiKey>("PATCH", `/api/keys/${part(id)}`, { json: changes }),
  rotate: (id: string) => request<KeyWithSecret>("POST", `/api/keys/${part(id)}/rotate`),
  revoke: (id: string) => request<void>("DELETE", `/api/keys/${part(id)}`),
};

export const admin = {
  users: (which: { q?: string; cursor?: string } = {}): Promise<Paged<AdminUser>> =>
    request<{ users: AdminUser[]; cursor: string | null }>("GET", `/api/admin/users${query(which)}`).then((answer) => ({
      items: answer.users,
      cursor: answer.cursor,
    })),
  changeUser: (id: string, changes: { role?: string; tier?: string; isLocked?: boolean }) =>
    request<AdminUser>("PATCH", `/api/admin/users/${part(id)}`, { json: changes }),
  deleteUser: (id: string) => request<void>("DELETE", `/api/admin/users/${part(id)}`),
  health: () => request<Health>("GET", "/api/admin/health"),
  nodes: () => request<Nodes>("GET", "/api/admin/nodes"),
  queue: () => request<QueueDepth>("GET", "/api/admin/queue"),
  usage: (days: number) => request<Usage>("GET", `/api/admin/usage${query({ days })}`),
};
