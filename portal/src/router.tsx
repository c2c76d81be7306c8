import { useEffect } from "preact/hooks";
import { Redirect, Route, Switch, useLocation, useSearch } from "wouter-preact";
import { routes, type PageRoute } from "./routes";
import { isAdmin, loadSession, session, sessionError } from "./session";
import { Shell } from "./Shell";
import { ButtonLink } from "./ui/Button";
import { Empty } from "./ui/Empty";
import { ErrorBox } from "./ui/ErrorBox";
import { Spinner } from "./ui/Spinner";

let seen: string | null = null;
let moved = false;

/** Whether this page was reached from another page of the app: then its heading takes the focus. */
export function hasNavigated(): boolean {
  return moved;
}

function Guarded({ route, params }: { route: PageRoute; params: Record<string, string | undefined> }) {
  const [path] = useLocation();
  const search = useSearch();
  if (route.who === "public") return <route.page params={params} />;
  if (sessionError.value) {
    return (
      <main class="lonely" id="main">
        <h1 class="for-readers">Stockade</h1>
        <ErrorBox error={sessionError.value} onRetry={() => void loadSession()} />
      </main>
    );
  }
  if (session.value === undefined) return <Spinner />;
  if (session.value === null) {
    // What follows the # is the code of a share link: it goes along.
    const next = `${path}${search ? `?${search}` : ""}${location.hash}`;
    return <Redirect to={`/login?next=${encodeURIComponent(next)}`} replace />;
  }
  if (route.who === "admin" && !isAdmin.value) return <Missing />;
  return (
    <Shell>
      {/* Another id is another page: nothing of the one before may stay. */}
      <route.page key={JSON.stringify(params)} params={params} />
    </Shell>
  );
}

function Missing() {
  useEffect(() => {
    document.title = "Not found · Stockade";
  }, []);
  return (
    <main class="lonely" id="main">
      <Empty icon="info" title="There is no such page" isPage>
        <p>The address may be mistyped, or the page is for administrators.</p>
        <ButtonLink href={session.value ? "/app" : "/"} kind="primary">
          {session.value ? "Back to the playground" : "To the start page"}
        </ButtonLink>
      </Empty>
    </main>
  );
}

export function Pages() {
  const [path] = useLocation();
  if (seen !== null && seen !== path) moved = true;
  seen = path;
  useEffect(() => {
    window.scrollTo(0, 0);
  }, [path]);
  return (
    <Switch>
      <Route path="/app">
        <Redirect to="/app/play" replace />
      </Route>
      {routes.map((route) => (
        <Route key={route.path} path={route.path}>
          {(params: Record<string, string | undefined>) => <Guarded key={route.path} route={route} params={params} />}
        </Route>
      ))}
      <Route>
        <Missing />
      </Route>
    </Switch>
  );
}
