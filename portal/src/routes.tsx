/** Every page: where it is, who may see it, and where the menu has it. */

import type { ComponentType } from "preact";
import { lazy, type PageProps } from "./lazy";
import type { IconName } from "./ui/Icon";

export interface PageRoute {
  path: string;
  page: ComponentType<PageProps>;
  /** `public`: everybody · `user`: whoever signed in · `admin`: administrators. */
  who: "public" | "user" | "admin";
  menu?: { title: string; icon: IconName };
}

export const routes: readonly PageRoute[] = [
  { path: "/", who: "public", page: lazy(() => import("./pages/Landing")) },
  { path: "/register", who: "public", page: lazy(() => import("./pages/Register")) },
  { path: "/login", who: "public", page: lazy(() => import("./pages/LogIn")) },
  { path: "/forgot", who: "public", page: lazy(() => import("./pages/Forgot")) },
  { path: "/reset", who: "public", page: lazy(() => import("./pages/Reset")) },
  { path: "/verify", who: "public", page: lazy(() => import("./pages/Verify")) },
  { path: "/app/play", who: "user", page: lazy(() => import("./pages/Playground")), menu: { title: "Playground", icon: "play" } },
  { path: "/app/sandboxes", who: "user", page: lazy(() => import("./pages/Sandboxes")), menu: { title: "Sandboxes", icon: "box" } },
  { path: "/app/sandboxes/:id", who: "user", page: lazy(() => import("./pages/SandboxDetail")) },
  { path: "/app/jobs", who: "user", page: lazy(() => import("./pages/Jobs")), menu: { title: "Jobs", icon: "list" } },
  { path: "/app/jobs/:id", who: "user", page: lazy(() => import("./pages/JobDetail")) },
  { path: "/app/usage", who: "user", page: lazy(() => import("./pages/Usage")), menu: { title: "Usage", icon: "chart" } },
  { path: "/app/keys", who: "user", page: lazy(() => import("./pages/Keys")), menu: { title: "Keys", icon: "key" } },
  { path: "/app/account", who: "user", page: lazy(() => import("./pages/Account")), menu: { title: "Account", icon: "user" } },
  { path: "/app/admin/users", who: "admin", page: lazy(() => import("./pages/AdminUsers")), menu: { title: "Users", icon: "users" } },
  { path: "/app/admin/nodes", who: "admin", page: lazy(() => import("./pages/AdminNodes")), menu: { title: "Nodes", icon: "server" } },
  { path: "/app/admin/health", who: "admin", page: lazy(() => import("./pages/AdminHealth")), menu: { title: "Health", icon: "heart" } },
  { path: "/app/admin/languages", who: "admin", page: lazy(() => import("./pages/AdminLanguages")), menu: { title: "Languages", icon: "code" } },
];
