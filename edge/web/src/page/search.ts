/** Answers as the query changes: debounced, the last query wins. */
import { useEffect, useRef, useState } from "preact/hooks";
import type { Answer, RetrievalClient, Query } from "../lib/index.js";

const WAIT_MS = 150;

export interface SearchState {
  answer?: Answer;
  /** The query has no answer yet, be it that it was not sent yet. */
  busy: boolean;
  error?: unknown;
}

/** What came of a query and an attempt; of earlier ones, until they are answered. */
interface Outcome {
  client?: RetrievalClient;
  query?: Query;
  attempt: number;
  answer?: Answer;
  error?: unknown;
}

/**
 * @param query what to ask; undefined for nothing. A new object is a new query.
 * @param attempt raised to ask again.
 */
export function useSearch(client: RetrievalClient, query: Query | undefined, attempt: number): SearchState {
  const [outcome, setOutcome] = useState<Outcome>({ attempt });
  const lastTokens = useRef<Float32Array | undefined>(undefined);
  useEffect(() => {
    if (!query) return setOutcome({ attempt });
    const abort = new AbortController();
    // Only typing is worth waiting for: a new picture is asked about at once.
    const wait = lastTokens.current === query.tokens ? WAIT_MS : 0;
    lastTokens.current = query.tokens;
    const timer = setTimeout(async () => {
      try {
        const answer = await client.search({ ...query, signal: abort.signal });
        if (!abort.signal.aborted) setOutcome({ client, query, attempt, answer });
      } catch (error) {
        if (!abort.signal.aborted) setOutcome((before) => ({ client, query, attempt, answer: before.answer, error }));
      }
    }, wait);
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, [client, query, attempt]);
  const { answer, error } = outcome;
  const busy = query !== undefined && (outcome.query !== query || outcome.attempt !== attempt || outcome.client !== client);
  return { answer, error, busy };
}
