/** Conditions on the gallery's metadata, all of which hold. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { useState } from "preact/hooks";
import { Comparison_Operator, type Column, type FilterSchema } from "../gen/asymcir_protos/v1/retrieval_pb.js";
import { strings } from "./strings.js";

export type Operator = keyof typeof strings.operators;

export interface Condition {
  column: string;
  type: string;
  operator: Operator;
  value: string;
}

type FilterInit = MessageInitShape<typeof FilterSchema>;

const OPERATORS: Record<string, Operator[]> = {
  integer: ["is", "not", "less", "greater"],
  real: ["is", "not", "less", "greater"],
  boolean: ["is"],
  text: ["is", "not", "starts"],
  mixed: ["is", "not", "starts"],
};
const CODES = {
  is: Comparison_Operator.EQUAL, not: Comparison_Operator.NOT_EQUAL, less: Comparison_Operator.LESS, greater: Comparison_Operator.GREATER,
};

/** Makes the message that holds where every condition does; undefined without any. */
export function toFilter(conditions: Condition[]): FilterInit | undefined {
  const filters = conditions.map(toCondition);
  if (filters.length < 2) return filters[0];
  return { condition: { case: "allOf", value: { filters } } };
}

function toCondition({ column: key, type, operator, value }: Condition): FilterInit {
  if (operator === "starts") return { condition: { case: "prefix", value: { key, prefix: value } } };
  return { condition: { case: "comparison", value: { key, operator: CODES[operator], value: { kind: toValue(type, value) } } } };
}

function toValue(type: string, value: string) {
  if (type === "boolean") return { case: "boolean", value: value === strings.yes } as const;
  if (type === "integer" && /^\s*[+-]?\d+\s*$/.test(value)) return { case: "integer", value: BigInt(value.trim()) } as const;
  if (type === "integer" || type === "real") return { case: "real", value: Number(value) } as const;
  return { case: "text", value } as const;
}

export function nameCondition({ column, operator, value }: Condition): string {
  return `${column} ${strings.operators[operator]} ${value}`;
}

export function Filters({ columns, onAdd }: { columns: Column[]; onAdd: (condition: Condition) => void }) {
  const [key, setKey] = useState("");
  const [operator, setOperator] = useState<Operator>("is");
  const [value, setValue] = useState("");
  const [wrong, setWrong] = useState(false);
  const column = columns.find((each) => each.key === key) ?? columns[0];
  if (!column) return null;
  const operators = OPERATORS[column.type] ?? OPERATORS.mixed!;
  const chosen = operators.includes(operator) ? operator : operators[0]!;
  const isNumber = column.type === "integer" || column.type === "real";
  const add = (event: Event) => {
    event.preventDefault();
    const typed = column.type === "boolean" ? value || strings.yes : value.trim();
    if (!typed) return;
    if (isNumber && !Number.isFinite(Number(typed))) return setWrong(true);
    setWrong(false);
    setValue("");
    onAdd({ column: column.key, type: column.type, operator: chosen, value: typed });
  };
  return (
    <form class="filters" onSubmit={add} aria-label={strings.filters}>
      <select aria-label={strings.filterColumn} value={column.key} onChange={(event) => setKey(event.currentTarget.value)}>
        {columns.map((each) => <option key={each.key} value={each.key}>{each.key}</option>)}
      </select>
      <select aria-label={strings.filterOperator} value={chosen} onChange={(event) => setOperator(event.currentTarget.value as Operator)}>
        {operators.map((each) => <option key={each} value={each}>{strings.operators[each]}</option>)}
      </select>
      {column.type === "boolean" ? (
        <select aria-label={strings.filterValue} value={value || strings.yes} onChange={(event) => setValue(event.currentTarget.value)}>
          <option>{strings.yes}</option>
          <option>{strings.no}</option>
        </select>
      ) : (
        <input
          aria-label={strings.filterValue} placeholder={strings.filterValue} value={value} inputMode={isNumber ? "decimal" : "text"}
          aria-invalid={wrong} onInput={(event) => setValue(event.currentTarget.value)}
        />
      )}
      <button type="submit" class="quiet">{strings.addFilter}</button>
      {wrong && <p class="wrong" role="alert">{strings.wrongNumber}</p>}
    </form>
  );
}
