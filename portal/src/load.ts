import { useCallback, useEffect, useRef, useState } from "preact/hooks";

export interface Loaded<T> {
  data: T | undefined;
  error: unknown;
  isLoading: boolean;
  /** Ask again; what is shown stays until the answer is there. */
  reload: () => void;
  set: (data: T) => void;
}

/** Fetch something when the page appears and whenever *inputs* change. Of answers that overtake each other the last asked counts. */
export function useLoad<T>(fetch: () => Promise<T>, inputs: readonly unknown[], options: { every_s?: number } = {}): Loaded<T> {
  const [state, setState] = useState<{ data: T | undefined; error: unknown; isLoading: boolean }>({ data: undefined, error: null, isLoading: true });
  const asked = useRef(0);
  const latest = useRef(fetch);
  latest.current = fetch;
  const reload = useCallback(() => {
    asked.current += 1;
    const mine = asked.current;
    setState((old) => ({ ...old, isLoading: true }));
    latest.current().then(
      (data) => mine === asked.current && setState({ data, error: null, isLoading: false }),
      (error: unknown) => mine === asked.current && setState((old) => ({ ...old, error, isLoading: false })),
    );
  }, []);
  useEffect(() => {
    reload();
    return () => {
      asked.current += 1; // an answer that comes later has no page to show it
    };
  }, inputs);
  useEffect(() => {
    if (!options.every_s) return undefined;
    const timer = setInterval(() => !document.hidden && reload(), options.every_s * 1000);
    return () => clearInterval(timer);
  }, [options.every_s]);
  const set = useCallback((data: T) => {
    asked.current += 1;
    setState({ data, error: null, isLoading: false });
  }, []);
  return { ...state, reload, set };
}
