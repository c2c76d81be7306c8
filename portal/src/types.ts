/** What the portal's API sends: times are RFC 3339 in UTC, durations seconds, sizes bytes. */

export interface Meta {
  version: string;
  sign_up: boolean;
  oidc: { name: string } | null;
  mail: boolean;
  csrf: string;
  max_limits: RunLimits;
  default_limits: RunLimits;
}

export interface RunLimits {
  wall_s?: number;
  cpu_s?: number;
  memory_bytes?: number;
}

export type Role = "user" | "admin";

export interface User {
  id: string;
  name: string;
  email: string;
  organization?: string;
  role: Role;
  emailVerified: boolean;
  hasPassword: boolean;
  createdAt: string;
  updatedAt: string;
}

export interface Session {
  user: User;
  account: { id: string; tier: string };
  csrf: string;
}

export interface LogIn {
  id: string;
  address: string;
  agent: string;
  createdAt: string;
  usedAt: string;
  isCurrent: boolean;
}

export interface Language {
  name: string;
  title: string;
  aliases: string[];
  extension: string;
  installed: boolean;
  example: string;
}

export type JobState = "queued" | "running" | "succeeded" | "failed" | "cancelled";

export interface JobResult {
  outcome: string;
  exitCode: number | null;
  signal: number | null;
  stdout: string;
  stderr: string;
  stdoutTruncated: boolean;
  stderrTruncated: boolean;
  durationS: number;
  cpuS: number;
  memoryPeakBytes: number;
  compilationFailed: boolean;
  failure?: string | null;
  message: string;
}

/** A job as lists have it. */
export interface JobSummary {
  id: string;
  language: string;
  requestedLanguage: string;
  state: JobState;
  priority: number;
  createdAt: string;
  startedAt?: string | null;
  endedAt?: string | null;
  runAt?: string | null;
  attempts: number;
  labels: Record<string, string>;
  batchId?: string | null;
  retryOf?: string | null;
  isDead: boolean;
  keyId: string;
  keyName?: string | null;
  limits: RunLimits;
  result?: Omit<JobResult, "stdout" | "stderr"> | null;
}

export interface Job extends Omit<JobSummary, "result"> {
  code: string;
  stdin: string;
  args: string[];
  result?: JobResult | null;
}

export interface JobRequest {
  language: string;
  code: string;
  stdin?: string;
  args?: string[];
  limits?: RunLimits;
  priority?: number;
  delay_s?: number;
  labels?: Record<string, string>;
}

export interface JobQuery {
  state?: string;
  language?: string;
  key?: string;
  batch?: string;
  dead?: string;
  after?: string;
  before?: string;
  limit?: string;
  cursor?: string;
}

export interface OutputPiece {
  stream: "stdout" | "stderr";
  text: string;
}

export interface SandboxPort {
  port: number;
  protocol: string;
  url?: string | null;
}

export interface Sandbox {
  id: string;
  state: string;
  image: string;
  command: string[];
  cwd?: string;
  createdAt: string;
  startedAt?: string | null;
  endedAt?: string | null;
  deadlineAt?: string | null;
  endedBy?: string | null;
  exitCode?: number | null;
  message: string;
  limits: Record<string, number | null>;
  network: { mode: string };
  ports: SandboxPort[];
  labels: Record<string, string>;
  keyId: string;
}

export interface SandboxRequest {
  image?: string;
  command?: string[];
  timeout_s?: number;
  memory_bytes?: number;
  network?: "none" | "outgoing" | "exposed";
  ports?: number[];
}

export interface FileEntry {
  name: string;
  kind: "file" | "directory" | "link" | "other";
  sizeBytes: number;
  modifiedAt: string;
  mode: number | string;
}

export interface UsageFigures {
  runs: number;
  errors: number;
  cpuS: number;
  wallS: number;
  memoryMbS: number;
  costCents: number;
  outcomes: Record<string, number>;
}

export interface Usage {
  days: (UsageFigures & { date: string })[];
  hours: (UsageFigures & { hour: string })[];
  keys: { id: string; name: string; runs: number; errors: number; cpuS: number; costCents: number }[];
  total: UsageFigures;
}

export interface ApiKey {
  id: string;
  name: string;
  description: string;
  preview: string;
  isActive: boolean;
  isPrimary: boolean;
  createdAt: string;
  expiresAt?: string | null;
  lastUsedAt?: string | null;
  dailyLimit?: number | null;
  concurrentLimit?: number | null;
}

export interface KeyRequest {
  name: string;
  description?: string;
  expiresAt?: string | null;
  dailyLimit?: number | null;
  concurrentLimit?: number | null;
}

export interface KeyWithSecret {
  key: ApiKey;
  secret: string;
}

export interface AdminUser extends User {
  tier: string;
  accountId: string;
  lastLoginAt?: string | null;
  isLocked: boolean;
}

export interface Health {
  server: { version: string; uptimeS: number };
  database: { kind: string; ok: boolean };
  jobs: { store: string; ok: boolean };
  features: { name: string; enforced: boolean; mechanism: string; remedy: string }[];
}

export interface Nodes {
  workers: {
    id: string;
    host: string;
    pid: number;
    languages: string[];
    places: number;
    running: number;
    startedAt: string;
    seenAt: string;
    isDraining: boolean;
  }[];
  places: { all: number; running: number; waiting: number };
}

export interface QueueDepth {
  queued: Record<string, number>;
  delayed: number;
  running: number;
  dead: number;
  oldestQueuedAt?: string | null;
}

export interface Paged<T> {
  items: T[];
  cursor: string | null;
}
