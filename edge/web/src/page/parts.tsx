/** Small parts of the page. */
import { useState } from "preact/hooks";
import type { Problem } from "./problems.js";
import { strings } from "./strings.js";

export function Chips({ label, names, nameRemoval, onRemove }: { label: string; names: string[]; nameRemoval: (name: string) => string; onRemove: (index: number) => void }) {
  if (!names.length) return null;
  return (
    <ul class="chips" aria-label={label}>
      {names.map((name, index) => (
        <li key={`${index} ${name}`}>
          <span>{name}</span>
          <button type="button" aria-label={nameRemoval(name)} onClick={() => onRemove(index)}>×</button>
        </li>
      ))}
    </ul>
  );
}

export function ProblemBox({ problem, onRetry, onKey }: { problem: Problem; onRetry: () => void; onKey: (key: string) => void }) {
  const [key, setKey] = useState("");
  return (
    <div class="problem" role="alert">
      <p>{problem.sentence}</p>
      {problem.offer === "retry" && <button type="button" class="quiet" onClick={onRetry}>{strings.retry}</button>}
      {problem.offer === "key" && (
        <form onSubmit={(event) => { event.preventDefault(); onKey(key.trim()); }}>
          <input type="password" autoComplete="off" aria-label={strings.key} placeholder={strings.key} value={key} onInput={(event) => setKey(event.currentTarget.value)} />
          <button type="submit" class="quiet">{strings.useKey}</button>
        </form>
      )}
    </div>
  );
}
